import { type Clock, ServiceError } from "@unkey/base";
import { type Dispatcher, request } from "undici";
import { parseChallenges } from "./challenge.ts";
import { Retryable, retryAfterMs } from "./retry.ts";
import { authorization, basicToken, type RegistryCredentials, readToken, type Token } from "./token.ts";
import { errorCode, isLasting, isTransportCode, speaksNoTls } from "./transport.ts";

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

/** Docker's own registry answers the API under another name than the one that images carry. */
const apiHosts: Readonly<Record<string, string>> = { "docker.io": "registry-1.docker.io" };
const maxRedirects = 5;
const maxTokenBytes = 256 * 1024;

/**
 * Authenticated reads from one repository (https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md and
 * https://distribution.github.io/distribution/spec/auth/token/). Credentials go to the registry's own origin and to the
 * token server it names, never along a redirect, and never over plain http unless that host is allowed to.
 */
export class RegistrySession {
  readonly #options: SessionOptions;
  #origin: Promise<string> | undefined;
  #token: Promise<Token> | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
  }

  /**
   * GETs `/v2/<repository>/<path>` and lends the body of a 200 answer. Throws Retryable, or the ServiceError that says
   * why not; 404 is IMAGE_NOT_FOUND with `what` as its subject.
   */
  async get<T>(
    path: string,
    what: string,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
    use: (response: Dispatcher.ResponseData) => Promise<T>,
  ): Promise<T> {
    const origin = await this.#resolveOrigin(signal);
    const start = new URL(`/v2/${this.#options.repository}/${path}`, origin);
    let token = await this.#heldToken();
    let response = await this.#follow(start, { ...headers, ...authorization(token) }, signal);
    if (response.statusCode === 401) {
      await response.body.dump();
      token = await this.#authenticate(response.headers["www-authenticate"], token, origin, signal);
      response = await this.#follow(start, { ...headers, ...authorization(token) }, signal);
    }
    if (response.statusCode !== 200) {
      const retryAfter = retryAfterMs(response.headers["retry-after"], this.#options.clock.nowMs());
      await response.body.dump();
      throw this.#failure(response.statusCode, what, token, retryAfter);
    }
    try {
      return await use(response);
    } catch (error) {
      response.body.destroy();
      signal.throwIfAborted();
      throw this.#transportFailure(error);
    }
  }

  /** Sends a GET and follows redirects; credentials stay at the first origin. */
  async #follow(
    start: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    let url = start;
    for (let redirects = 0; ; redirects++) {
      const { authorization: secret, ...plain } = headers;
      const sent = url.origin === start.origin && secret !== undefined ? { ...plain, authorization: secret } : plain;
      const response = await this.#send(url, sent, signal);
      if (![301, 302, 303, 307, 308].includes(response.statusCode)) return response;
      await response.body.dump();
      const location = response.headers["location"];
      if (typeof location !== "string" || redirects === maxRedirects || !URL.canParse(location, url)) {
        throw this.#violation("redirects without an end");
      }
      url = new URL(location, url);
      this.#checkTransport(url, "redirects to");
    }
  }

  async #send(
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Dispatcher.ResponseData> {
    try {
      return await request(url, {
        dispatcher: this.#options.dispatcher,
        headers: { "user-agent": "unkey-builderd", ...headers },
        signal,
      });
    } catch (error) {
      signal.throwIfAborted();
      throw this.#transportFailure(error);
    }
  }

  /** https, or plain http where that is allowed and TLS is not spoken there. Found once for a session. */
  async #resolveOrigin(signal: AbortSignal): Promise<string> {
    this.#origin ??= this.#probe(signal);
    try {
      return await this.#origin;
    } catch (error) {
      this.#origin = undefined;
      throw error;
    }
  }

  async #probe(signal: AbortSignal): Promise<string> {
    const host = apiHosts[this.#options.registry] ?? this.#options.registry;
    const secure = `https://${host}`;
    if (!this.#options.allowsPlainHttp(host)) return secure;
    try {
      const response = await request(`${secure}/v2/`, { dispatcher: this.#options.dispatcher, signal });
      await response.body.dump();
      return secure;
    } catch (error) {
      signal.throwIfAborted();
      if (speaksNoTls(error)) return `http://${host}`;
      throw this.#transportFailure(error);
    }
  }

  async #heldToken(): Promise<Token | undefined> {
    const token = await this.#token;
    return token !== undefined && token.expiresAtMs > this.#options.clock.nowMs() ? token : undefined;
  }

  /**
   * Answers a challenge. One token serves all requests; parallel ones that meet the same 401 share its renewal. `refused`
   * is the token that the registry did not take.
   */
  async #authenticate(
    header: string | string[] | undefined,
    refused: Token | undefined,
    origin: string,
    signal: AbortSignal,
  ): Promise<Token> {
    const { credentials } = this.#options;
    const challenges = parseChallenges(header);
    const bearer = challenges.find(
      ({ scheme, parameters }) => scheme === "bearer" && parameters["realm"] !== undefined,
    );
    if (bearer === undefined) {
      if (!challenges.some(({ scheme }) => scheme === "basic")) {
        throw this.#violation("asks for a login in a way that is not supported");
      }
      if (credentials === undefined) throw this.#credentialsRequired();
      if (refused !== undefined) throw this.#credentialsRejected();
      this.#token = Promise.resolve(basicToken(credentials));
      return this.#token;
    }
    const held = await this.#heldToken();
    if (held === undefined || held === refused) this.#token = undefined;
    this.#token ??= this.#fetchToken(bearer.parameters, origin, signal);
    try {
      return await this.#token;
    } catch (error) {
      this.#token = undefined;
      throw error;
    }
  }

  async #fetchToken(parameters: Readonly<Record<string, string>>, origin: string, signal: AbortSignal): Promise<Token> {
    const { credentials, repository, clock } = this.#options;
    const realm = parameters["realm"] ?? "";
    if (!URL.canParse(realm, origin)) throw this.#violation("names a token server that is not a URL");
    const url = new URL(realm, origin);
    this.#checkTransport(url, "takes logins at");
    if (parameters["service"] !== undefined) url.searchParams.set("service", parameters["service"]);
    url.searchParams.set("scope", `repository:${repository}:pull`); // never more than is needed, whatever was offered
    const login = credentials === undefined ? undefined : basicToken(credentials);
    const response = await this.#send(url, authorization(login), signal);
    if (response.statusCode !== 200) {
      const retryAfter = retryAfterMs(response.headers["retry-after"], clock.nowMs());
      await response.body.dump();
      if ([400, 401, 403].includes(response.statusCode)) {
        throw credentials === undefined ? this.#credentialsRequired() : this.#credentialsRejected();
      }
      throw this.#failure(response.statusCode, "the token server", undefined, retryAfter);
    }
    const body = await this.#boundedText(response, maxTokenBytes);
    const token = readToken(body, clock.nowMs());
    if (token === undefined) throw this.#violation("gives no usable token");
    return token;
  }

  async #boundedText(response: Dispatcher.ResponseData, maxBytes: number): Promise<string> {
    const parts: Uint8Array[] = [];
    let bytes = 0;
    try {
      for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
        bytes += chunk.length;
        if (bytes > maxBytes) throw this.#violation(`sends a token of over ${maxBytes} bytes`);
        parts.push(chunk);
      }
    } catch (error) {
      throw this.#transportFailure(error);
    }
    return Buffer.concat(parts).toString("utf8");
  }

  #checkTransport(url: URL, verb: string): void {
    if (url.protocol === "https:") return;
    if (url.protocol === "http:" && this.#options.allowsPlainHttp(url.host)) return;
    throw new ServiceError(
      "REGISTRY_INSECURE",
      `the registry ${this.#options.registry} ${verb} ${url.origin}, which is not TLS`,
    );
  }

  #failure(status: number, what: string, token: Token | undefined, retryAfter: number | undefined): Error {
    const { registry, repository, credentials } = this.#options;
    switch (status) {
      case 404:
        return new ServiceError("IMAGE_NOT_FOUND", `${what} is not in the registry ${registry}`);
      case 401:
      case 403:
        if (credentials === undefined) return this.#credentialsRequired();
        return status === 401 && token?.scheme === "basic" ? this.#credentialsRejected() : this.#denied();
      case 429: {
        const wait = retryAfter === undefined ? "" : `; it asks to wait ${Math.ceil(retryAfter / 1000)} s`;
        return new Retryable(
          new ServiceError(
            "REGISTRY_RATE_LIMITED",
            `the registry ${registry} limits how often ${repository} is pulled${wait}`,
          ),
          retryAfter,
        );
      }
      default:
        if (status < 500) return this.#violation(`answers ${what} with status ${status}`);
        return new Retryable(
          new ServiceError("REGISTRY_UNAVAILABLE", `the registry ${registry} answers with status ${status}`),
          retryAfter,
        );
    }
  }

  #credentialsRequired(): ServiceError {
    const { registry, repository } = this.#options;
    return new ServiceError(
      "REGISTRY_CREDENTIALS_REQUIRED",
      `the registry ${registry} gives ${repository} to nobody without a login, or has no such repository`,
    );
  }

  #credentialsRejected(): ServiceError {
    return new ServiceError(
      "REGISTRY_CREDENTIALS_REJECTED",
      `the registry ${this.#options.registry} refuses the user name or password`,
    );
  }

  #denied(): ServiceError {
    const { registry, repository } = this.#options;
    return new ServiceError(
      "REGISTRY_ACCESS_DENIED",
      `the registry ${registry} does not let this user read ${repository}`,
    );
  }

  #violation(why: string): ServiceError {
    return new ServiceError("REGISTRY_PROTOCOL_VIOLATED", `the registry ${this.#options.registry} ${why}`);
  }

  /** Errors of ours pass; those of the network become Retryable, except where trying again cannot help. */
  #transportFailure(error: unknown): Error {
    if (error instanceof ServiceError || error instanceof Retryable) return error;
    const code = errorCode(error);
    if (!isTransportCode(code)) return error instanceof Error ? error : new Error(String(error));
    const final = new ServiceError(
      "REGISTRY_UNAVAILABLE",
      `the registry ${this.#options.registry} cannot be reached (${code || "connection failed"})`,
      { cause: error },
    );
    return isLasting(code) ? final : new Retryable(final);
  }
}
