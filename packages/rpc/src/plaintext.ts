import type { Socket } from "node:net";
import { errorCatalogue } from "@unkey/base";

/** First byte of a TLS record that carries a handshake (RFC 8446 §5.1). */
const tlsHandshake = 0x16;

/** What a connection speaks, by its first bytes. */
export type FirstBytes = "tls" | "http1" | "http2" | "unknown";

export function recognise(first: Uint8Array): FirstBytes {
  if (first[0] === tlsHandshake) return "tls";
  const text = Buffer.from(first.subarray(0, 16)).toString("latin1");
  // The connection preface of HTTP/2 with prior knowledge (RFC 9113 §3.4).
  if (text.startsWith("PRI * HT")) return "http2";
  return /^[A-Z]{3,10} /.test(text) ? "http1" : "unknown";
}

const message = "this port speaks TLS 1.3 with client certificates, and the connection is not encrypted";

/** Tells a client that forgot TLS what to do, in the language it speaks, and closes. */
export function answerPlaintext(socket: Socket, kind: Exclude<FirstBytes, "tls">): void {
  if (kind === "http1") socket.end(http1Answer());
  else if (kind === "http2") socket.end(http2Answer());
  else socket.destroy();
}

function http1Answer(): string {
  const { code, nextStep } = errorCatalogue.TLS_REQUIRED;
  const body = `${JSON.stringify({ code, message, reason: "TLS_REQUIRED", nextStep })}\n`;
  return [
    "HTTP/1.1 400 Bad Request",
    "content-type: application/json",
    `content-length: ${Buffer.byteLength(body)}`,
    "connection: close",
    "",
    body,
  ].join("\r\n");
}

/** An empty SETTINGS frame, then GOAWAY with INADEQUATE_SECURITY and the message as debug data (RFC 9113 §6.8). */
function http2Answer(): Buffer {
  const debug = Buffer.from(`${message}. ${errorCatalogue.TLS_REQUIRED.nextStep}`);
  const settings = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
  const goaway = Buffer.alloc(17);
  goaway.writeUIntBE(8 + debug.length, 0, 3);
  goaway[3] = 7;
  goaway.writeUInt32BE(0xc, 13);
  return Buffer.concat([settings, goaway, debug]);
}
