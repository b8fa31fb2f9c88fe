import { type Clock, kib } from "@unkey/base";
import { type Dispatcher, request } from "undici";
import { Authenticator } from "./authenticator.ts";
import { paced } from "./paced.ts";
import { RegistryFailures } from "./registry-failures.ts";
import { retryAfterMs } from "./retry.ts";
import { authorization, type RegistryCredentials } from "./token.ts";
import { speaksNoTls } from "./transport.ts";

export interface SessionOptions {
  /** Host and port as in an image's name. */
  readonly registry: string;
  readonly repository: string;
  readonly credentials: RegistryCredentials | undefined;
  /** True for a host that may be spoken to without TLS. */
  readonly allowsPlainHttp: (host: string) => boolean;
  readonly dispatcher: Dispatcher;
  readonly clock: Clock;
}

export interface RegistryRequest {
  readonly method?: "GET" | "HEAD";
  /** Below `/v2/<repository>/`. */
  readonly path: string;
  /** For messages. */
  readonly what: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Answers that the caller takes; 200 alone when left out. A redirect that is among them is not followed. */
  readonly statuses?: readonly number[];
}

/** Docker's own registry answers the API under another name than the one that images carry. */
const apiHosts: Readonly<Record<string, string>> = { "docker.io": "registry-1.docker.io" };
const maxRedirects = 5;
export const redirectStatuses: readonly number[] = [301, 302, 303, 307, 308];
/** What is read of an unwanted body so that its connection can be used again. */
const maxDiscardedBytes = 64 * kib;
const maxDiscardMs = 2_000;

/**
 * Authenticated reads from one repository (https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md).
 * Credentials go to the registry's own origin and to the token server it names, never along a redirect, and never over
 * plain http unless that host is allowed to.
 */
export class RegistrySession {
  readonly failures: RegistryFailures;
  readonly #options: SessionOptions;
  readonly #auth: Authenticator;
  #origin: Promise<string> | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
    const { registry, repository, credentials, clock } = options;
    this.failures = new RegistryFailures({ registry, repository, hasLogin: credentials !== undefined });
    this.#auth = new Authenticator({
      repository,
      credentials,
      failures: this.failures,
      clock,
      send: (url, headers, signal) => this.#send("GET", url, headers, signal),
      body: (response, signal) => this.body(response, signal),
      discard: (response) => discard(response),
      checkTransport: (url, verb) => this.#checkTransport(url, verb),
    });
  }

  /**
   * The answer to a request, with one of the statuses asked for; its body is to be read through `body`. Throws Retryable, or
   * the ServiceError that says why not; 404 is IMAGE_NOT_FOUND.
   */
  async open(wanted: RegistryRequest, signal: AbortSignal): Promise<Dispatcher.ResponseData> {
    const { path, what, statuses = [200] } = wanted;
    const origin = await this.#resolveOrigin(signal);
    const start = new URL(`/v2/${this.#options.repository}/${path}`, origin);
    let token = await this.#auth.held();
    let response = await this.#follow(start, wanted, authorization(token), signal);
    if (response.statusCode === 401) {
      await discard(response);
      token = await this.#auth.answer(response.headers["www-authenticate"], token, origin, signal);
      response = await this.#follow(start, wanted, authorization(token), signal);
    }
    if (statuses.includes(response.statusCode)) return response;
    const retryAfter = retryAfterMs(response.headers["retry-after"], this.#options.clock.nowMs());
    await discard(response);
    throw this.failures.status(response.statusCode, what, token, retryAfter);
  }

  /** The body of an answer, given up when it drips; what is not read is let go. Throws as `open` does. */
  async *body(response: Dispatcher.ResponseData, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const body = response.body as AsyncIterable<Uint8Array>;
    try {
      yield* paced(body, this.#options.clock, () => this.failures.tooSlow());
    } catch (error) {
      signal.throwIfAborted();
      throw this.failures.transport(error);
    } finally {
      response.body.on("error", () => {}).destroy();
    }
  }

  /** Sends a request and follows redirects; credentials stay at the first origin. */
  async #follow(
    start: URL,
    { method = "GET", headers = {}, statuses = [] }: RegistryRequest,
    secret: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    let url = start;
    for (let redirects = 0; ; redirects++) {
      const sent = url.origin === start.origin ? { ...headers, ...secret } : headers;
      const response = await this.#send(method, url, sent, signal);
      if (!redirectStatuses.includes(response.statusCode) || statuses.includes(response.statusCode)) return response;
      await discard(response);
      const location = response.headers["location"];
      if (typeof location !== "string" || redirects === maxRedirects || !URL.canParse(location, url)) {
        throw this.failures.violation("redirects without an end");
      }
      url = new URL(location, url);
      this.#checkTransport(url, "redirects to");
    }
  }

  async #send(
    method: "GET" | "HEAD",
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    try {
      return await request(url, {
        method,
        dispatcher: this.#options.dispatcher,
        // A digest is over what is stored: nothing is to be compressed on the way.
        headers: { "user-agent": "unkey-builderd", "accept-encoding": "identity", ...headers },
        signal,
      });
    } catch (error) {
      signal.throwIfAborted();
      throw this.failures.transport(error);
    }
  }

  /** https, or plain http where that is allowed and TLS is not spoken there. Found once for a session. */
  async #resolveOrigin(signal: AbortSignal): Promise<string> {
    const probing = (this.#origin ??= this.#probe(signal));
    try {
      return await probing;
    } catch (error) {
      if (this.#origin === probing) this.#origin = undefined;
      throw error;
    }
  }

  async #probe(signal: AbortSignal): Promise<string> {
    const host = apiHosts[this.#options.registry] ?? this.#options.registry;
    const secure = `https://${host}`;
    if (!this.#options.allowsPlainHttp(host)) return secure;
    try {
      const response = await request(`${secure}/v2/`, { dispatcher: this.#options.dispatcher, signal });
      await discard(response);
      return secure;
    } catch (error) {
      signal.throwIfAborted();
      if (speaksNoTls(error)) return `http://${host}`;
      throw this.failures.transport(error);
    }
  }

  #checkTransport(url: URL, verb: string): void {
    if (url.protocol === "https:") return;
    if (url.protocol === "http:" && this.#options.allowsPlainHttp(url.host)) return;
    throw this.failures.notTls(verb, url.origin);
  }
}

/** Reads a short body to its end, so that the connection lives on; lets go of a long or slow one. */
async function discard(response: Dispatcher.ResponseData): Promise<void> {
  response.body.on("error", () => {});
  await response.body
    .dump({ limit: maxDiscardedBytes, signal: AbortSignal.timeout(maxDiscardMs) })
    .catch(() => response.body.destroy());
}
