import { type ClientHttp2Session, connect as connectH2 } from "node:http2";
import { request as httpsRequest, type RequestOptions } from "node:https";

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: string;
}

export interface Ask {
  readonly port: number;
  readonly ca: string;
  readonly host?: string;
  readonly serverName?: string;
  readonly method?: string;
  readonly path?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array;
  readonly insecure?: boolean;
}

/** One HTTPS request over HTTP/1.1 on a connection of its own. */
export function ask(options: Ask): Promise<Answer> {
  const { port, ca, host = "localhost", method = "GET", path = "/", headers = {}, body } = options;
  const request: RequestOptions = {
    host: "127.0.0.1",
    port,
    ca,
    servername: options.serverName ?? host,
    method,
    path,
    agent: false,
    headers: { host: `${host}:${port}`, ...headers },
    rejectUnauthorized: !options.insecure,
  };
  return new Promise((resolve, reject) => {
    const outgoing = httpsRequest(request, (incoming) => {
      const chunks: Buffer[] = [];
      incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
      incoming.once("error", reject);
      incoming.once("end", () =>
        resolve({
          status: incoming.statusCode ?? 0,
          headers: incoming.headers,
          body: Buffer.concat(chunks).toString("utf8"),
        }),
      );
    });
    outgoing.once("error", reject);
    outgoing.end(body);
  });
}

/** One request on an open HTTP/2 session. */
export function askH2(
  session: ClientHttp2Session,
  headers: Readonly<Record<string, string>>,
  body?: Uint8Array,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ...headers }, { endStream: body === undefined });
    let head: Record<string, string | string[] | undefined> = {};
    const chunks: Buffer[] = [];
    stream.once("response", (received) => (head = received as typeof head));
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.once("error", reject);
    stream.once("end", () =>
      resolve({ status: Number(head[":status"]), headers: head, body: Buffer.concat(chunks).toString("utf8") }),
    );
    if (body !== undefined) stream.end(body);
  });
}

export async function openH2(options: {
  port: number;
  ca: string;
  host: string;
}): Promise<ClientHttp2Session & Disposable> {
  const session = connectH2(`https://127.0.0.1:${options.port}`, { ca: options.ca, servername: options.host });
  await new Promise<void>((resolve, reject) => {
    session.once("connect", () => resolve());
    session.once("error", reject);
  });
  return Object.assign(session, { [Symbol.dispose]: () => session.destroy() });
}
