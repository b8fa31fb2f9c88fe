import type { Clock } from "@unkey/base";
import type { Dispatcher } from "undici";
import { parseChallenges } from "./challenge.ts";
import type { RegistryFailures } from "./registry-failures.ts";
import { retryAfterMs } from "./retry.ts";
import { authorization, basicToken, type RegistryCredentials, readToken, type Token } from "./token.ts";

export interface AuthenticatorDeps {
  readonly repository: string;
  readonly credentials: RegistryCredentials | undefined;
  readonly failures: RegistryFailures;
  readonly clock: Clock;
  /** Sends a GET without following redirects; throws what `RegistryFailures` makes of the network's errors. */
  readonly send: (
    url: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ) => Promise<Dispatcher.ResponseData>;
  readonly body: (response: Dispatcher.ResponseData, signal: AbortSignal) => AsyncIterable<Uint8Array>;
  readonly discard: (response: Dispatcher.ResponseData) => Promise<void>;
  /** Throws REGISTRY_INSECURE for an address that may not be spoken to. */
  readonly checkTransport: (url: URL, verb: string) => void;
}

const maxTokenBytes = 256 * 1024;

/** Whoever asked for a shared token has gone: the others ask again. */
class Abandoned extends Error {}

/**
 * Answers a registry's challenges (https://distribution.github.io/distribution/spec/auth/token/). One token serves all
 * requests of a session; those that meet the same refusal share its renewal.
 */
export class Authenticator {
  readonly #deps: AuthenticatorDeps;
  #token: Promise<Token> | undefined;
  #renewing: Promise<Token> | undefined;

  constructor(deps: AuthenticatorDeps) {
    this.#deps = deps;
  }

  /** The token that still holds; undefined without one. */
  async held(): Promise<Token | undefined> {
    const token = await this.#token?.catch(() => undefined);
    return token !== undefined && token.expiresAtMs > this.#deps.clock.nowMs() ? token : undefined;
  }

  /** A token for what `header` (WWW-Authenticate) asks; `refused` is the one that the registry did not take. */
  async answer(
    header: string | string[] | undefined,
    refused: Token | undefined,
    origin: string,
    signal: AbortSignal,
  ): Promise<Token> {
    const { credentials, failures } = this.#deps;
    const challenges = parseChallenges(header);
    const bearer = challenges.find(
      ({ scheme, parameters }) => scheme === "bearer" && parameters["realm"] !== undefined,
    );
    if (bearer === undefined) {
      if (!challenges.some(({ scheme }) => scheme === "basic")) {
        throw failures.violation("asks for a login in a way that is not supported");
      }
      if (credentials === undefined) throw failures.credentialsRequired();
      if (refused !== undefined) throw failures.credentialsRejected();
      this.#token = Promise.resolve(basicToken(credentials));
      return this.#token;
    }
    const held = await this.held();
    if (held !== undefined && held !== refused) return held;
    return this.#renew(bearer.parameters, origin, signal);
  }

  async #renew(parameters: Readonly<Record<string, string>>, origin: string, signal: AbortSignal): Promise<Token> {
    for (;;) {
      try {
        return await (this.#renewing ?? this.#start(parameters, origin, signal));
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof Abandoned)) throw error;
      }
    }
  }

  #start(parameters: Readonly<Record<string, string>>, origin: string, signal: AbortSignal): Promise<Token> {
    const running = this.#fetch(parameters, origin, signal)
      .catch((error: unknown) => {
        throw signal.aborted ? new Abandoned("gone", { cause: error }) : error;
      })
      .finally(() => {
        this.#renewing = undefined;
      });
    this.#renewing = running;
    this.#token = running;
    return running;
  }

  async #fetch(parameters: Readonly<Record<string, string>>, origin: string, signal: AbortSignal): Promise<Token> {
    const { credentials, repository, clock, failures, checkTransport, send, discard } = this.#deps;
    const realm = parameters["realm"] ?? "";
    if (!URL.canParse(realm, origin)) throw failures.violation("names a token server that is not a URL");
    const url = new URL(realm, origin);
    checkTransport(url, "takes logins at");
    if (parameters["service"] !== undefined) url.searchParams.set("service", parameters["service"]);
    url.searchParams.set("scope", `repository:${repository}:pull`); // never more than is needed, whatever was offered
    const login = credentials === undefined ? undefined : basicToken(credentials);
    const response = await send(url, authorization(login), signal);
    if (response.statusCode !== 200) {
      const retryAfter = retryAfterMs(response.headers["retry-after"], clock.nowMs());
      await discard(response);
      if ([400, 401, 403].includes(response.statusCode)) {
        throw credentials === undefined ? failures.credentialsRequired() : failures.credentialsRejected();
      }
      throw failures.status(response.statusCode, "the token server", undefined, retryAfter);
    }
    const token = readToken(await this.#text(response, signal), clock.nowMs());
    if (token === undefined) throw failures.violation("gives no usable token");
    return token;
  }

  async #text(response: Dispatcher.ResponseData, signal: AbortSignal): Promise<string> {
    const parts: Uint8Array[] = [];
    let bytes = 0;
    for await (const chunk of this.#deps.body(response, signal)) {
      bytes += chunk.length;
      if (bytes > maxTokenBytes) throw this.#deps.failures.violation(`sends a token of over ${maxTokenBytes} bytes`);
      parts.push(chunk);
    }
    return Buffer.concat(parts).toString("utf8");
  }
}
