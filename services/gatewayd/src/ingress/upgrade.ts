import { request as httpRequest, type IncomingMessage, STATUS_CODES } from "node:http";
import type { Http2ServerRequest } from "node:http2";
import type { Duplex } from "node:stream";
import { clientHeaders, upstreamHeaders } from "../domain/proxy-headers.ts";
import { type Refusal, refusals, renderRefusal } from "./pages.ts";
import type { Upstream } from "./upstream.ts";

const answerTimeoutMs = 10_000;
const handshakeFields = [
  "sec-websocket-key",
  "sec-websocket-version",
  "sec-websocket-protocol",
  "sec-websocket-extensions",
];

/**
 * Passes a WebSocket handshake (RFC 6455 §4) on to a VM. When the app accepts, both connections become one; when it does
 * not, the client gets the app's answer.
 */
export function proxyUpgrade(call: {
  readonly upstream: Upstream;
  readonly appName: string;
  readonly request: Http2ServerRequest;
  readonly socket: Duplex;
  readonly head: Buffer;
  readonly authority: string;
  readonly clientAddress: string;
}): void {
  const { upstream, request, socket, head, authority, clientAddress, appName } = call;
  const leave = upstream.enter();
  const headers = upstreamHeaders(request.headers, { address: clientAddress, authority });
  headers.push("connection", "Upgrade", "upgrade", "websocket");
  const outgoing = httpRequest({
    host: upstream.host,
    port: upstream.port,
    method: "GET",
    path: request.url,
    headers,
    agent: false,
    timeout: answerTimeoutMs,
    setHost: false,
  });
  const end = () => {
    leave();
    outgoing.destroy();
    socket.destroy();
  };
  socket.on("error", end);
  socket.once("close", end);
  outgoing.once("timeout", () => {
    refuseSocket(socket, refusals.late(appName));
    outgoing.destroy();
  });
  outgoing.on("error", () => refuseSocket(socket, refusals.dead(appName)));
  outgoing.once("response", (answer) => {
    writeAnswer(socket, answer);
    answer.pipe(socket);
  });
  outgoing.once("upgrade", (answer, app, first) => {
    leave(); // a long-lived connection is not a running request: it ends with its VM
    upstream.adopt(socket);
    socket.once("close", () => app.destroy());
    app.on("error", end);
    app.once("close", end);
    app.setTimeout(0);
    writeAnswer(socket, answer);
    if (first.byteLength > 0) socket.write(first);
    if (head.byteLength > 0) app.write(head);
    app.pipe(socket);
    socket.pipe(app);
  });
  outgoing.end();
}

function writeAnswer(socket: Duplex, answer: IncomingMessage): void {
  const status = answer.statusCode ?? 502;
  const lines = [`HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ""}`];
  for (const [name, value] of Object.entries(clientHeaders(answer.headers))) {
    for (const each of typeof value === "string" ? [value] : value) lines.push(`${name}: ${each}`);
  }
  lines.push(...(status === 101 ? ["connection: Upgrade", "upgrade: websocket"] : ["connection: close"]));
  socket.write(`${lines.join("\r\n")}\r\n\r\n`);
}

/** Answers a connection that no HTTP machinery holds any more, and closes it. */
export function refuseSocket(socket: Duplex, refusal: Refusal): void {
  if (socket.destroyed || socket.writableEnded) return;
  const { type, body } = renderRefusal(refusal, undefined);
  socket.end(
    [
      `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status] ?? ""}`,
      `content-type: ${type}`,
      `content-length: ${Buffer.byteLength(body)}`,
      "connection: close",
      "",
      body,
    ].join("\r\n"),
  );
}

/** True for a handshake that can be passed on. */
export function isWebSocketHandshake(request: Http2ServerRequest): boolean {
  return (
    request.method === "GET" &&
    request.headers.upgrade?.toLowerCase() === "websocket" &&
    handshakeFields.slice(0, 2).every((name) => typeof request.headers[name] === "string")
  );
}
