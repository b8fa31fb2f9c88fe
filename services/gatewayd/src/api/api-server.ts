import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { type ConnectRouter, createConnectRouter } from "@connectrpc/connect";
import {
  compressionGzip,
  universalRequestFromNodeRequest,
  universalResponseToNodeResponse,
} from "@connectrpc/connect-node";
import { GatewayService } from "@unkey/api/gateway";
import { ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { completeError, type Pipeline, requestIdHeader } from "@unkey/rpc";
import { listenTls, type TlsServer } from "../net/tls-server.ts";
import { isRegistryPath } from "../registry/registry-route.ts";
import { ApiRunner, type Implementation } from "./api-runner.ts";
import { RestHandler, webHeaders } from "./rest-handler.ts";
import { RestRouter } from "./rest-router.ts";

export interface ApiServerOptions {
  readonly host: string;
  readonly port: number;
  readonly certificate: () => { readonly cert: string; readonly key: string };
  readonly implementation: Implementation;
  readonly policies: Pipeline;
  /** Answers everything below `/v2/`. */
  readonly registry: { serve(request: Http2ServerRequest, response: Http2ServerResponse): Promise<void> };
  readonly openApi: Uint8Array;
  readonly log: Logger;
  readonly abort: AbortSignal;
}

const maxMessageBytes = 4 * 1024 * 1024;
const maxHeaderBytes = 16 * 1024;
/** For pushes from afar. A connection that waits on all of its streams holds 64 MiB, after it has shown a key. */
const streamWindowBytes = 512 * 1024;

/** The public API on one port: Connect, gRPC and gRPC-Web under the service's name, images below /v2/, REST elsewhere. */
export async function listenApi(options: ApiServerOptions): Promise<TlsServer> {
  const { implementation, policies, log, abort } = options;
  const router = createConnectRouter({
    acceptCompression: [compressionGzip],
    readMaxBytes: maxMessageBytes,
    writeMaxBytes: maxMessageBytes,
    shutdownSignal: abort,
    interceptors: policies.interceptors,
    requestGate: policies.requestGate,
  });
  router.service(GatewayService, implementation as unknown as Parameters<ConnectRouter["service"]>[1]);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  const rest = new RestHandler({
    runner: new ApiRunner({
      service: GatewayService,
      implementation,
      gate: policies.requestGate,
      interceptors: policies.interceptors,
      shutdownSignal: abort,
    }),
    router: new RestRouter(GatewayService),
    openApi: options.openApi,
    log,
    maxBodyBytes: maxMessageBytes,
  });

  const serve = async (request: Http2ServerRequest, response: Http2ServerResponse): Promise<void> => {
    const path = request.url.split("?", 1)[0] ?? "";
    const handler = handlers.get(path);
    if (!handler && isRegistryPath(path)) {
      await options.registry.serve(request, response);
      return;
    }
    if (!handler) {
      await rest.serve(request, response);
      return;
    }
    const universal = universalRequestFromNodeRequest(request, response, undefined, undefined);
    const answer = await handler(universal);
    const requestId = webHeaders(request).get(requestIdHeader) ?? undefined;
    const complete = await completeError(answer, (error) => policies.refuse(handler.method, error, requestId));
    await universalResponseToNodeResponse(complete, response);
  };

  return listenTls({
    host: options.host,
    port: options.port,
    defaultContext: options.certificate,
    log,
    abort,
    maxHeaderBytes,
    streamWindowBytes,
    onRequest: (request, response) => {
      if (!hasUsableAuthority(request)) {
        response.writeHead(400, { connection: "close" });
        response.end();
        return;
      }
      serve(request, response).catch((error: unknown) => {
        log.debug("answer not delivered", { path: request.url, error });
        response.destroy(error instanceof Error ? error : new ServiceError("INTERNAL", "answer not delivered"));
      });
    },
  });
}

/** The adapters build a URL from the Host header: one that cannot be part of a URL is refused before. */
function hasUsableAuthority(request: Http2ServerRequest): boolean {
  const authority = request.authority ?? request.headers.host;
  return (
    authority !== undefined &&
    /^(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?$/.test(authority) &&
    URL.canParse(`https://${authority}`)
  );
}
