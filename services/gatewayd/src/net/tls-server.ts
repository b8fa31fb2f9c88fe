import {
  createSecureServer,
  type Http2ServerRequest,
  type Http2ServerResponse,
  type ServerHttp2Session,
} from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { SecureContext, TLSSocket } from "node:tls";
import type { Logger } from "@unkey/daemon";

export interface TlsServerOptions {
  readonly host: string;
  /** 0 lets the system choose. */
  readonly port: number;
  /** For clients that name no host, or one that `contextFor` does not know. */
  readonly defaultContext: () => { readonly cert: string; readonly key: string };
  /** The certificate of the host that a client names (SNI). */
  readonly contextFor?: (serverName: string) => SecureContext | undefined;
  readonly onRequest: (request: Http2ServerRequest, response: Http2ServerResponse) => void;
  /** HTTP/1.1 upgrades; without it they are served as plain requests. */
  readonly onUpgrade?: (request: Http2ServerRequest, socket: Duplex, head: Buffer) => void;
  readonly log: Logger;
  /** Cuts off what still runs while the server drains. */
  readonly abort: AbortSignal;
  readonly maxHeaderBytes: number;
  /**
   * What a client may send on an HTTP/2 stream ahead of its handler, at least 64 KiB, HTTP/2's own. So much a round trip is an
   * upload's pace at most, and so much memory each of a connection's 128 streams can take from a handler that is slow.
   */
  readonly streamWindowBytes?: number;
}

/** Disposal drains: no new connections, running requests finish, `abort` cuts them off. */
export interface TlsServer extends AsyncDisposable {
  readonly host: string;
  readonly port: number;
  readonly draining: boolean;
  /** Takes over a new certificate for new connections. */
  renew(): void;
}

const maxConnections = 4096;
const handshakeTimeoutMs = 10_000;
/** Headers have to arrive within this time, whatever the pace (slowloris). */
const headersTimeoutMs = 15_000;
const checkEveryMs = 2000;
const keepAliveMs = 60_000;
/** A session without a stream is closed after so long. */
const idleSessionMs = 120_000;
const maxConcurrentStreams = 128;
/** Node gives a connection's window back as bytes arrive, so it bounds a burst of all streams together and not memory. */
const windowsPerConnection = 4;

/** Serves HTTP/2 and HTTP/1.1 over TLS 1.3 until disposed. */
export async function listenTls(options: TlsServerOptions): Promise<TlsServer> {
  const { log, contextFor, streamWindowBytes = 65_535 } = options;
  const server = createSecureServer({
    ...options.defaultContext(),
    minVersion: "TLSv1.3",
    allowHTTP1: true,
    handshakeTimeout: handshakeTimeoutMs,
    maxHeaderListPairs: 128,
    maxSessionInvalidFrames: 100,
    maxSessionRejectedStreams: 100,
    // Rapid reset (CVE-2023-44487): a burst of cancelled requests is legitimate, a sustained rate is not.
    streamResetBurst: 500,
    streamResetRate: 50,
    settings: {
      maxConcurrentStreams,
      maxHeaderListSize: options.maxHeaderBytes,
      initialWindowSize: streamWindowBytes,
      enableConnectProtocol: false,
    },
    ...(contextFor
      ? {
          SNICallback: (name: string, done: (error: Error | null, context?: SecureContext) => void) => {
            try {
              done(null, contextFor(name));
            } catch (error) {
              done(error instanceof Error ? error : new Error(String(error)));
            }
          },
        }
      : {}),
  });
  server.maxConnections = maxConnections;
  // The HTTP/1.1 side of the server reads these from the server object.
  Object.assign(server, {
    headersTimeout: headersTimeoutMs,
    requestTimeout: 0, // uploads take their time; each handler bounds its own
    keepAliveTimeout: keepAliveMs,
    connectionsCheckingInterval: checkEveryMs,
    maxHeaderSize: options.maxHeaderBytes,
    maxHeadersCount: 128,
  });

  const sessions = new Set<ServerHttp2Session>();
  /** Connections before, during and after their handshake. */
  const connections = new Set<Socket>();
  const sockets = new Map<TLSSocket, { running: number }>();
  let running = 0;
  let idle: (() => void) | undefined;
  let draining = false;

  const note = limitedLines(log);
  server.on("connection", (connection: Socket) => {
    connections.add(connection);
    connection.once("close", () => connections.delete(connection));
  });
  server.on("secureConnection", (socket: TLSSocket) => {
    sockets.set(socket, { running: 0 });
    socket.on("error", () => undefined);
    socket.once("close", () => sockets.delete(socket));
    if (draining) socket.destroy();
  });
  server.on("session", (session) => {
    sessions.add(session);
    session.once("close", () => sessions.delete(session));
    session.on("error", () => undefined);
    session.setLocalWindowSize(windowsPerConnection * streamWindowBytes);
    session.setTimeout(idleSessionMs, () => session.close());
    if (draining) session.close();
  });
  server.on("tlsClientError", (error, socket) => {
    note("handshake failed", { remote: socket.remoteAddress, error });
    socket.destroy();
  });
  server.on("sessionError", (error) => note("connection failed", { error }));

  server.on("request", (request: Http2ServerRequest, response: Http2ServerResponse) => {
    running += 1;
    const http1 = request.httpVersionMajor === 1 ? sockets.get(request.socket as TLSSocket) : undefined;
    if (http1) http1.running += 1;
    if (draining && http1) response.setHeader("connection", "close");
    response.once("close", () => {
      running -= 1;
      if (http1) http1.running -= 1;
      if (draining && http1?.running === 0) request.socket.destroy();
      if (running === 0) idle?.();
    });
    // Without a listener, a client that breaks off would take the process down.
    request.on("error", () => undefined);
    response.on("error", () => undefined);
    options.onRequest(request, response);
  });
  if (options.onUpgrade) server.on("upgrade", options.onUpgrade);

  const listening = Promise.withResolvers<void>();
  server.once("error", listening.reject);
  server.listen({ host: options.host, port: options.port }, listening.resolve);
  await listening.promise.catch((cause: unknown) => {
    throw new Error(`cannot listen on ${options.host}:${options.port}`, { cause });
  });
  server.on("error", (error) => log.error("listening socket failed", { error }));
  const { port } = server.address() as AddressInfo;

  const close = async () => {
    draining = true;
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    for (const session of sessions) session.close();
    for (const [socket, state] of sockets) {
      if (state.running === 0 && socket.alpnProtocol !== "h2") socket.destroy();
    }
    await untilIdle();
    for (const session of sessions) session.destroy();
    for (const connection of connections) connection.destroy();
    await closed;
  };
  const untilIdle = async () => {
    const { abort } = options;
    if (running === 0 || abort.aborted) return;
    const done = Promise.withResolvers<void>();
    const finish = () => done.resolve();
    idle = finish;
    abort.addEventListener("abort", finish, { once: true });
    await done.promise;
    abort.removeEventListener("abort", finish);
  };
  let closing: Promise<void> | undefined;
  return {
    host: options.host,
    port,
    get draining() {
      return draining;
    },
    renew: () => server.setSecureContext({ ...options.defaultContext(), minVersion: "TLSv1.3" }),
    [Symbol.asyncDispose]: () => (closing ??= close()),
  };
}

/** At most ten lines a second: whoever can connect must not be able to flood the log. */
function limitedLines(log: Logger): Logger["debug"] {
  let second = 0;
  let count = 0;
  return (message, fields) => {
    const now = Math.floor(performance.now() / 1000);
    if (now !== second) [second, count] = [now, 0];
    if (++count <= 10) log.debug(message, fields);
  };
}
