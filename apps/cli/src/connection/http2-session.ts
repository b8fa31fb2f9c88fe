import { type ClientHttp2Session, type ClientHttp2Stream, connect, type OutgoingHttpHeaders } from "node:http2";
import type { ConnectTransportOptions } from "@connectrpc/connect-node";

type SessionManager = NonNullable<Extract<ConnectTransportOptions, { httpVersion: "2" }>["sessionManager"]>;

/**
 * The one connection of a command, opened again after it was lost. connect-node's own manager takes its error listener
 * off a session that said GOAWAY, so a late error of it ends the process; here each session keeps one for life.
 */
export class Http2Session implements SessionManager, Disposable {
  readonly authority: string;
  readonly #caPem: string | undefined;
  #session: Promise<ClientHttp2Session> | undefined;

  constructor(url: URL, caPem: string | undefined) {
    this.authority = url.origin;
    this.#caPem = caPem;
  }

  async request(method: string, path: string, headers: OutgoingHttpHeaders): Promise<ClientHttp2Stream> {
    this.#session ??= this.#connect();
    const session = await this.#session;
    return session.request({ ...headers, ":method": method, ":path": path });
  }

  notifyResponseByteRead(): void {
    // Only a manager that sends pings needs to know.
  }

  #connect(): Promise<ClientHttp2Session> {
    const connected = Promise.withResolvers<ClientHttp2Session>();
    const session = connect(this.authority, this.#caPem === undefined ? {} : { ca: this.#caPem });
    const forget = () => {
      if (this.#session === connected.promise) this.#session = undefined;
    };
    session.once("connect", () => connected.resolve(session));
    session.on("error", (error) => {
      forget();
      connected.reject(error);
    });
    session.once("goaway", forget);
    session.once("close", () => {
      forget();
      connected.reject(new Error("the connection was closed"));
    });
    return connected.promise;
  }

  [Symbol.dispose](): void {
    const opened = this.#session;
    this.#session = undefined;
    void opened?.then((session) => session.destroy()).catch(() => undefined);
  }
}
