import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import type { TLSSocket } from "node:tls";
import type { Logger, Metrics } from "@unkey/daemon";
import type { HostCertificates } from "@unkey/pki";
import { appOfHost, hostOfAuthority } from "../domain/host-name.ts";
import { listenTls, type TlsServer } from "../net/tls-server.ts";
import { type Refusal, refusals, renderRefusal } from "./pages.ts";
import { proxyRequest } from "./proxy.ts";
import { type AppRoute, pickUpstream, type RouteMap } from "./route-map.ts";
import { isWebSocketHandshake, proxyUpgrade, refuseSocket } from "./upgrade.ts";

export interface IngressOptions {
  readonly host: string;
  readonly port: number;
  /** Apps answer at `<app>.<domain>`. */
  readonly domain: string;
  readonly routes: RouteMap;
  readonly certificates: HostCertificates;
  /** For names that no app has. */
  readonly defaultCertificate: () => { readonly cert: string; readonly key: string };
  readonly maxBodyBytes: number;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly abort: AbortSignal;
  readonly random: () => number;
}

const maxHeaderBytes = 32 * 1024;

interface Target {
  readonly route: AppRoute;
  readonly authority: string;
}

/** Serves apps by host name over TLS 1.3. Certificates are issued for apps that exist, and for nothing else. */
export async function listenIngress(options: IngressOptions): Promise<TlsServer> {
  const { routes, certificates, domain, log, metrics, random, maxBodyBytes } = options;
  const requests = metrics.counter("unkey_ingress_requests_total", "Requests to apps by class of status.");
  const seconds = metrics.histogram("unkey_ingress_seconds", "Duration of requests to apps.");

  const handle = async (request: Http2ServerRequest, response: Http2ServerResponse) => {
    const target = targetOf(request, domain, routes);
    if (!("route" in target)) return target;
    const { route, authority } = target;
    const clientAddress = addressOf(request);
    return proxyRequest({ route, request, response, authority, clientAddress, maxBodyBytes, random });
  };

  const server: TlsServer = await listenTls({
    host: options.host,
    port: options.port,
    defaultContext: options.defaultCertificate,
    contextFor: (name) => {
      const app = appOfHost(name.toLowerCase(), domain);
      return app !== undefined && routes.find(app) ? certificates.contextFor(name) : undefined;
    },
    log,
    abort: options.abort,
    maxHeaderBytes,
    onRequest: (request, response) => {
      const startedAtMs = performance.now();
      response.once("close", () => {
        requests.inc({ status: response.headersSent ? `${Math.floor(response.statusCode / 100)}xx` : "none" });
        seconds.observe((performance.now() - startedAtMs) / 1000);
      });
      handle(request, response).then(
        (refusal) => refusal && refuse(request, response, refusal),
        (error: unknown) => {
          log.error("ingress failed", { error });
          response.destroy();
        },
      );
    },
    onUpgrade: (request, socket, head) => {
      socket.on("error", () => undefined);
      const target = isWebSocketHandshake(request)
        ? targetOf(request, domain, routes)
        : refusals.malformed("Only WebSocket handshakes upgrade a connection here.");
      if (!("route" in target)) {
        refuseSocket(socket, target);
        return;
      }
      const { route, authority } = target;
      const { appName } = route;
      const upstream = pickUpstream(route, Date.now(), random);
      if (!upstream) refuseSocket(socket, refusals.busy(appName));
      else proxyUpgrade({ upstream, appName, request, socket, head, authority, clientAddress: addressOf(request) });
    },
  });
  return server;
}

/** The app that a request is for, or why there is none. */
function targetOf(request: Http2ServerRequest, domain: string, routes: RouteMap): Target | Refusal {
  const { method } = request;
  if (method === "CONNECT" || method === "TRACE") return refusals.method(method);
  const authority = authorityOf(request);
  const host = authority === undefined ? undefined : hostOfAuthority(authority);
  if (authority === undefined || host === undefined)
    return refusals.malformed("The request names no single valid host.");
  if (!request.url.startsWith("/")) return refusals.malformed("The request target is not a path.");
  const serverName = (request.socket as TLSSocket & { servername?: string | false }).servername;
  if (serverName && serverName.toLowerCase() !== host) return refusals.misdirected();
  const app = appOfHost(host, domain);
  if (app === undefined) return refusals.unknownHost(host);
  const route = routes.find(app);
  if (!route) return refusals.unknownApp(app);
  if (!route.deployed) return refusals.notDeployed(app);
  if (route.upstreams.length === 0) return refusals.stopped(app);
  return { route, authority };
}

/** The one host that the request names; two different ones are a way to make two proxies disagree. */
function authorityOf(request: Http2ServerRequest): string | undefined {
  const { host } = request.headers;
  if (request.httpVersionMajor === 2) {
    const { authority } = request;
    return host === undefined || !authority || host === authority ? authority || host : undefined;
  }
  const count = request.rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === "host").length;
  return count === 1 ? host : undefined;
}

function addressOf(request: Http2ServerRequest): string {
  return (request.socket.remoteAddress ?? "").replace(/^::ffff:/, "");
}

function refuse(request: Http2ServerRequest, response: Http2ServerResponse, refusal: Refusal): void {
  if (response.headersSent || response.destroyed) return;
  const { type, body } = renderRefusal(refusal, request.headers.accept);
  const http1 = request.httpVersionMajor === 1;
  response.writeHead(refusal.status, {
    "content-type": type,
    "content-length": Buffer.byteLength(body),
    "cache-control": "no-store",
    // What is left of the body is not for anybody: the connection cannot be used again.
    ...(http1 && !request.complete ? { connection: "close" } : {}),
  });
  if (request.method === "HEAD") response.end();
  else response.end(body);
  request.resume();
}
