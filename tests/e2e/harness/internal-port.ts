import { connect as connectHttp2, type SecureClientSessionOptions } from "node:http2";
import { connect as connectTcp } from "node:net";

/** Talks to a service's own port without any of our client code: for what no client of ours would send. */

/** Certificates to speak TLS with, in PEM. */
export type Credentials = Pick<SecureClientSessionOptions, "ca" | "cert" | "key">;

export interface PostOptions {
  readonly port: number;
  readonly credentials: Credentials;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array;
}

export interface PostAnswer {
  readonly status: number;
  readonly body: string;
  readonly trailers: Readonly<Record<string, string>>;
}

/** One request over HTTP/2 on a connection of its own. */
export async function post({ port, credentials, path, headers, body }: PostOptions): Promise<PostAnswer> {
  const session = connectHttp2(`https://127.0.0.1:${port}`, credentials);
  try {
    return await new Promise<PostAnswer>((resolve, reject) => {
      session.once("error", reject);
      const stream = session.request({ ":method": "POST", ":path": path, ...headers });
      let status = 0;
      const trailers: Record<string, string> = {};
      const chunks: Buffer[] = [];
      stream.once("response", (answer) => (status = answer[":status"] ?? 0));
      stream.once("trailers", (found) => {
        for (const [name, value] of Object.entries(found)) trailers[name] = String(value);
      });
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.once("error", reject);
      stream.once("end", () => resolve({ status, body: Buffer.concat(chunks).toString(), trailers }));
      stream.end(body);
    });
  } finally {
    session.destroy();
  }
}

/** Writes `bytes` to the port as they are and reads until the other side closes. */
export function exchangePlainly(port: number, bytes: string | Uint8Array): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const socket = connectTcp({ host: "127.0.0.1", port }, () => socket.write(bytes));
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.once("error", reject);
    socket.once("close", () => resolve(Buffer.concat(chunks)));
  });
}

/** A message as gRPC frames it: not compressed, length, bytes. */
export function grpcEnvelope(message: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.byteLength, 1);
  return Buffer.concat([head, message]);
}
