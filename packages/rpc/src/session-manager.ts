import { type ClientHttp2Session, type ClientHttp2Stream, connect, type OutgoingHttpHeaders } from "node:http2";
import { isIP } from "node:net";
import type { PeerCertificate } from "node:tls";
import { ServiceError } from "@unkey/base";
import { type Identity, type IdentitySource, spiffeIdOfNames } from "@unkey/pki";
import { type AddressResolver, originOf } from "./address.ts";

/**
 * One HTTP/2 connection to a peer at a time. It is
 * - opened by the first call that needs it, to wherever the resolver then points;
 * - retired (calls under way finish, new ones open another) when the peer says GOAWAY or our certificate is renewed;
 * - destroyed when a ping goes unanswered, because a host that vanished sends no end of stream.
 */
interface Connection {
  readonly session: ClientHttp2Session;
  readonly ready: Promise<void>;
}

const connectTimeoutMs = 5000;
const pingIntervalMs = 20_000;
const pingTimeoutMs = 10_000;

export class SessionManager {
  /** What connect-node compares the request's origin with; the true address may change under it. */
  readonly authority: string;
  readonly #peer: string;
  readonly #resolve: AddressResolver;
  readonly #identity: IdentitySource;
  readonly #renewal: Disposable;
  readonly #sessions = new Set<ClientHttp2Session>();
  #current: Promise<Connection> | undefined;
  #session: ClientHttp2Session | undefined;
  #closed = false;

  constructor(options: {
    readonly peer: string;
    readonly resolve: AddressResolver;
    readonly identity: IdentitySource;
  }) {
    this.#peer = options.peer;
    this.authority = `https://${options.peer}`;
    this.#resolve = options.resolve;
    this.#identity = options.identity;
    this.#renewal = options.identity.onRenewal(() => this.#retire());
  }

  async request(method: string, path: string, headers: OutgoingHttpHeaders): Promise<ClientHttp2Stream> {
    // The second attempt is for a connection that closed between being handed out and being used.
    for (let attempt = 0; ; attempt++) {
      const { session } = await this.#connection();
      try {
        const stream = session.request({ ...headers, ":method": method, ":path": path });
        // connect-node listens while the call runs; an error after that must not take the process down.
        stream.on("error", () => undefined);
        // Retired while it was being opened: this call is its last.
        if (session !== this.#session) session.close();
        return stream;
      } catch (cause) {
        this.#forget(session);
        if (attempt > 0) throw unavailable(this.#peer, cause);
      }
    }
  }

  /** Part of what connect-node expects; our pings need no hint. */
  notifyResponseByteRead(): void {}

  /** Resolves when the peer answers a ping. */
  async ping(): Promise<void> {
    const { session } = await this.#connection();
    await new Promise<void>((resolve, reject) => {
      session.ping((error) => (error === null ? resolve() : reject(unavailable(this.#peer, error))));
    });
  }

  /** Lets calls under way finish for `graceMs`, then breaks them off. */
  async close(graceMs: number): Promise<void> {
    this.#closed = true;
    this.#renewal[Symbol.dispose]();
    this.#retire();
    const open = [...this.#sessions].filter((session) => !session.destroyed);
    if (open.length === 0) return;
    const timer = setTimeout(() => {
      for (const session of open) session.destroy();
    }, graceMs);
    await Promise.all(open.map((session) => new Promise<void>((resolve) => session.once("close", resolve))));
    clearTimeout(timer);
  }

  async #connection(): Promise<Connection> {
    if (this.#closed) throw new ServiceError("SHUTTING_DOWN", `the connection to ${this.#peer} is closed`);
    this.#current ??= this.#open();
    const opening = this.#current;
    try {
      const connection = await opening;
      await connection.ready;
      return connection;
    } catch (error) {
      if (this.#current === opening) this.#current = undefined;
      throw error;
    }
  }

  async #open(): Promise<Connection> {
    const address = await this.#resolve();
    const identity = this.#identity.current;
    const session = connect(originOf(address), {
      ALPNProtocols: ["h2"],
      minVersion: "TLSv1.3",
      cert: identity.certPem,
      key: identity.keyPem,
      ca: identity.caPem,
      ...(isIP(address.host) ? {} : { servername: address.host }),
      checkServerIdentity: (_host, certificate) => this.#checkPeer(identity, certificate),
      settings: { enablePush: false, initialWindowSize: 1024 * 1024, maxHeaderListSize: 32 * 1024 },
    });
    this.#sessions.add(session);
    this.#session = session;
    const established = Promise.withResolvers<void>();
    // Nobody may be waiting any more when a connection fails; the failure is told to whoever asks.
    established.promise.catch(() => undefined);
    let failure: unknown = new Error("the connection closed before it was established");
    const timer = setTimeout(() => session.destroy(new Error("no connection in time")), connectTimeoutMs);
    session.once("connect", () => {
      clearTimeout(timer);
      session.setLocalWindowSize(4 * 1024 * 1024);
      established.resolve();
    });
    session.on("error", (error) => (failure = error));
    session.once("goaway", () => this.#forget(session));
    session.once("close", () => {
      clearTimeout(timer);
      clearInterval(pings);
      this.#sessions.delete(session);
      this.#forget(session);
      established.reject(unavailable(this.#peer, failure));
    });
    const pings = setInterval(() => keepAlive(session), pingIntervalMs).unref();
    return { session, ready: established.promise };
  }

  /** The peer is who its SPIFFE name says, wherever it listens. */
  #checkPeer(identity: Identity, certificate: PeerCertificate): Error | undefined {
    const id = spiffeIdOfNames(certificate.subjectaltname ?? "");
    if (id?.trustDomain === identity.id.trustDomain && id.service === this.#peer) return undefined;
    const found = id === undefined ? "no service at all" : `${id.service} of ${id.trustDomain}`;
    return new Error(`the server is ${found}, not ${this.#peer} of ${identity.id.trustDomain}`);
  }

  /** New calls open another connection; the ones there are end with their last call. */
  #retire(): void {
    this.#current = undefined;
    this.#session = undefined;
    for (const session of this.#sessions) if (!session.closed && !session.connecting) session.close();
  }

  #forget(session: ClientHttp2Session): void {
    if (session !== this.#session) return;
    this.#current = undefined;
    this.#session = undefined;
  }
}

function keepAlive(session: ClientHttp2Session): void {
  if (session.destroyed || session.closed || session.connecting) return;
  const timer = setTimeout(() => session.destroy(new Error("a ping went unanswered")), pingTimeoutMs).unref();
  try {
    session.ping(() => clearTimeout(timer));
  } catch {
    clearTimeout(timer); // it closed meanwhile
  }
}

function unavailable(peer: string, cause: unknown): ServiceError {
  return new ServiceError("DEPENDENCY_UNAVAILABLE", `${peer} cannot be reached`, { cause });
}
