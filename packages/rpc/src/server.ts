import { constants as cryptoConstants } from "node:crypto";
import {
  createSecureServer,
  type Http2SecureServer,
  type Http2ServerRequest,
  type Http2ServerResponse,
  constants as http2Constants,
  type ServerHttp2Session,
} from "node:http2";
import { type AddressInfo, createServer, type Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import { type ConnectRouter, createConnectRouter, createContextKey, createContextValues } from "@connectrpc/connect";
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from "@connectrpc/connect-node";
import { type Clock, isServiceError, ServiceError, systemClock } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { formatSpiffeId, type Identity, type IdentitySource } from "@unkey/pki";
import { authorize } from "./access.ts";
import { type CallIdentity, principalHeader } from "./caller.ts";
import { toConnectError } from "./errors.ts";
import { completeError, respondWithError } from "./http-answer.ts";
import { type Peer, peerOf, refusedPeer } from "./peer.ts";
import { createPipeline, requestIdOf } from "./pipeline.ts";
import { answerPlaintext, recognise } from "./plaintext.ts";
import { PrincipalVerifier } from "./principal.ts";
import { warmUpValidation } from "./validation.ts";

export interface ListenRpcOptions {
  /** Registers the services: `(router) => router.service(AssetService, handlers)`. */
  readonly routes: (router: ConnectRouter) => void;
  readonly identity: IdentitySource;
  readonly host: string;
  /** 0 lets the system choose. */
  readonly port: number;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Cuts off what still runs while the server drains: DaemonContext.abort. */
  readonly abort?: AbortSignal;
  readonly clock?: Clock;
  /** Largest single message, in either direction; 4 MiB unless told. */
  readonly maxMessageBytes?: number;
  readonly defaultTimeoutMs?: number;
  readonly maxTimeoutMs?: number;
}

/** Disposal drains: no new connections or calls, running calls finish, `abort` cuts them off. */
export interface RpcServer extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
}

const maxConnections = 1024;
const handshakeTimeoutMs = 10_000;
/** How long a refused client has to read why. */
const refusalLingerMs = 1000;
const peerKey = createContextKey<Peer | undefined>(undefined, { description: "peer" });

/** Serves Connect over HTTP/2 and mutual TLS 1.3 until disposed. */
export async function listenRpc(options: ListenRpcOptions): Promise<RpcServer> {
  const { identity, log, clock = systemClock, maxMessageBytes = 4 * 1024 * 1024 } = options;
  const trustDomain = identity.current.id.trustDomain;
  const refusals = limitedWarnings(log);
  const cut = new AbortController();
  let draining = false;

  const verifier = new PrincipalVerifier({
    trust: () => ({ caCertificate: identity.current.caCertificate, trustDomain }),
    nowMs: () => clock.nowMs(),
  });
  const pipeline = createPipeline({
    ...options,
    authenticate: (context): CallIdentity => {
      if (draining) throw new ServiceError("SHUTTING_DOWN", "the service is stopping");
      const peer = context.values.get(peerKey);
      if (peer === undefined) throw new ServiceError("CLIENT_CERTIFICATE_REFUSED", "the client has no identity");
      const expired = refusedPeer(peer, clock.nowMs());
      if (expired) throw expired;
      const token = context.requestHeader.get(principalHeader) ?? undefined;
      const { service, instance } = peer.id;
      authorize(context.method, { service, hasPrincipal: token !== undefined });
      return {
        service,
        ...(instance === undefined ? {} : { instance }),
        ...(token === undefined ? {} : { principal: verifier.verify(token), principalToken: token }),
      };
    },
  });

  // Only the Connect protocol, uncompressed: every protocol and codec that nobody uses is one that can be attacked.
  const router = createConnectRouter({
    grpc: false,
    grpcWeb: false,
    acceptCompression: [],
    readMaxBytes: maxMessageBytes,
    writeMaxBytes: maxMessageBytes,
    shutdownSignal: cut.signal,
    interceptors: pipeline.interceptors,
    requestGate: pipeline.requestGate,
  });
  options.routes(router);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));

  const peers = new WeakMap<object, Peer | ServiceError>();
  const sessions = new Set<ServerHttp2Session>();
  const running = new Set<Http2ServerResponse>();
  let idle: (() => void) | undefined;

  const onRequest = (request: Http2ServerRequest, response: Http2ServerResponse) => {
    running.add(response);
    response.once("close", () => {
      running.delete(response);
      if (running.size === 0) idle?.();
    });
    // Without a listener, a client that breaks off would take the process down.
    request.on("error", () => undefined);
    response.on("error", () => undefined);
    serve(request, response).catch((error: unknown) => {
      log.debug("answer not delivered", { path: request.url, error });
      response.stream.close(http2Constants.NGHTTP2_INTERNAL_ERROR);
    });
  };

  const serve = async (request: Http2ServerRequest, response: Http2ServerResponse): Promise<void> => {
    const { session } = request.stream;
    const peer = session === undefined ? undefined : peers.get(session);
    const handler = handlers.get(request.url.split("?", 1)[0] ?? "");
    if (peer === undefined || isServiceError(peer)) {
      const refusal = peer ?? new ServiceError("CLIENT_CERTIFICATE_REFUSED", "the client has no identity");
      respondWithError(response, toConnectError(refusal));
      return;
    }
    if (handler === undefined) {
      const path = request.url.slice(0, 200);
      respondWithError(response, toConnectError(new ServiceError("UNIMPLEMENTED", `there is no RPC at ${path}`)));
      return;
    }
    const values = createContextValues().set(peerKey, peer);
    const universal = universalRequestFromNodeRequest(request, response, undefined, values);
    const answer = await handler(universal);
    const requestId = requestIdOf(universal.header);
    if (answer.status === 405 || answer.status === 415) {
      const why = answer.status === 405 ? "only POST is served" : "the content type is none of this RPC's";
      respondWithError(
        response,
        pipeline.refuse(handler.method, new ServiceError("MALFORMED_MESSAGE", why), requestId),
      );
      return;
    }
    const complete = await completeError(answer, (error) => pipeline.refuse(handler.method, error, requestId));
    await universalResponseToNodeResponse(complete, response);
  };

  const http2 = createSecureServer(
    {
      ...secureContextOf(identity.current),
      allowHTTP1: false,
      ALPNProtocols: ["h2"],
      requestCert: true,
      // Refused here instead, so that the client reads why (see onSession).
      rejectUnauthorized: false,
      handshakeTimeout: handshakeTimeoutMs,
      maxHeaderListPairs: 64,
      maxSessionInvalidFrames: 100,
      maxSessionRejectedStreams: 100,
      // Rapid reset (CVE-2023-44487): a burst of cancelled calls is legitimate, a sustained rate is not.
      streamResetBurst: 1000,
      streamResetRate: 100,
      settings: { maxConcurrentStreams: 256, maxHeaderListSize: 32 * 1024, initialWindowSize: 1024 * 1024 },
    },
    onRequest,
  );
  http2.on("session", (session) => {
    sessions.add(session);
    session.once("close", () => sessions.delete(session));
    session.on("error", () => undefined);
    const socket = session.socket as TLSSocket;
    const peer = peerOf(socket, trustDomain);
    peers.set(session, peer);
    if (isServiceError(peer)) {
      refusals.warn("client refused", { remote: socket.remoteAddress, error: peer });
      session.settings({ maxConcurrentStreams: 1 });
      setTimeout(() => session.destroy(), refusalLingerMs).unref();
      return;
    }
    // Large uploads share one connection; the default window of 64 KiB would pace them by round trips.
    session.setLocalWindowSize(4 * 1024 * 1024);
    if (draining) session.close();
  });
  http2.on("sessionError", (error) => refusals.warn("connection failed", { error }));
  http2.on("tlsClientError", (error, socket) => {
    refusals.warn("handshake failed", { remote: socket.remoteAddress, error });
    socket.destroy();
  });
  const renewal = identity.onRenewal((renewed) => http2.setSecureContext(secureContextOf(renewed)));

  const sockets = new Set<Socket>();
  const front = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 30_000 }, (socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    admit(socket, http2, (kind) => refusals.warn("plaintext refused", { remote: socket.remoteAddress, kind }));
  });
  front.maxConnections = maxConnections;
  const listening = Promise.withResolvers<void>();
  front.once("error", listening.reject);
  front.listen({ host: options.host, port: options.port }, listening.resolve);
  await listening.promise.catch((cause: unknown) => {
    renewal[Symbol.dispose]();
    throw new Error(`cannot listen on ${options.host}:${options.port}`, { cause });
  });
  front.on("error", (error) => log.error("listening socket failed", { error }));
  void warmUpValidation();
  const { address, port } = front.address() as AddressInfo;
  log.debug("rpc listening", { host: address, port, id: formatSpiffeId(identity.current.id) });

  let closing: Promise<void> | undefined;
  const close = async () => {
    draining = true;
    const closed = new Promise<void>((resolve) => front.close(() => resolve()));
    const onAbort = () => {
      cut.abort(new ServiceError("SHUTTING_DOWN", "the service stopped before the call was done"));
    };
    if (options.abort?.aborted) onAbort();
    else options.abort?.addEventListener("abort", onAbort, { once: true });
    // GOAWAY: clients finish what they have here and go elsewhere with the rest.
    for (const session of sessions) session.close();
    await drained(running, cut.signal, (resolve) => (idle = resolve));
    options.abort?.removeEventListener("abort", onAbort);
    if (cut.signal.aborted) await clock.sleep(100); // lets the refusals of cut calls reach the wire
    for (const session of sessions) session.destroy();
    for (const socket of sockets) socket.destroy();
    renewal[Symbol.dispose]();
    await closed;
  };
  return { host: options.host, port, [Symbol.asyncDispose]: () => (closing ??= close()) };
}

/** Resolves when nothing runs any more, or when what runs is cut off. */
async function drained(
  running: ReadonlySet<unknown>,
  cut: AbortSignal,
  onIdle: (resolve: () => void) => void,
): Promise<void> {
  if (running.size === 0 || cut.aborted) return;
  await new Promise<void>((resolve) => {
    onIdle(resolve);
    cut.addEventListener("abort", () => resolve(), { once: true });
  });
}

/** Looks at a connection's first bytes: TLS goes on to the server, anything else hears what this port speaks. */
function admit(socket: Socket, http2: Http2SecureServer, onPlaintext: (kind: string) => void): void {
  socket.on("error", () => undefined);
  socket.setTimeout(handshakeTimeoutMs, () => socket.destroy());
  socket.once("data", (first: Buffer) => {
    socket.pause();
    socket.setTimeout(0);
    const kind = recognise(first);
    if (kind === "tls") {
      socket.unshift(first);
      http2.emit("connection", socket);
    } else {
      onPlaintext(kind);
      answerPlaintext(socket, kind);
      socket.resume();
      setTimeout(() => socket.destroy(), refusalLingerMs).unref();
    }
  });
}

function secureContextOf(identity: Identity) {
  return {
    cert: identity.certPem,
    key: identity.keyPem,
    ca: identity.caPem,
    minVersion: "TLSv1.3",
    // A resumed session would keep a peer's certificate alive past its end; connections are long, handshakes few.
    secureOptions: cryptoConstants.SSL_OP_NO_TICKET,
  } as const;
}

/** At most ten lines a second: whoever can connect must not be able to flood the log. */
function limitedWarnings(log: Logger): Pick<Logger, "warn"> {
  let second = 0;
  let count = 0;
  return {
    warn: (message, fields) => {
      const now = Math.floor(performance.now() / 1000);
      if (now !== second) [second, count] = [now, 0];
      if (++count <= 10) log.warn(message, fields);
    },
  };
}
