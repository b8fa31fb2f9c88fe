import { ServiceError } from "@unkey/base";
import { Retryable } from "./retry.ts";
import type { Token } from "./token.ts";
import { errorCode, isCertificateCode, isConnectCode, isLasting, isTransportCode, speaksNoHttp } from "./transport.ts";

/** Where nobody answers, waiting for a connection takes long: fewer tries than where somebody answers badly. */
const connectAttempts = 3;

/** What a registry did, said to the caller. */
export class RegistryFailures {
  readonly #registry: string;
  readonly #repository: string;
  readonly #hasLogin: boolean;

  constructor(options: { readonly registry: string; readonly repository: string; readonly hasLogin: boolean }) {
    this.#registry = options.registry;
    this.#repository = options.repository;
    this.#hasLogin = options.hasLogin;
  }

  /** Of an answer that is not the wanted one; 404 is IMAGE_NOT_FOUND with `what` as its subject. */
  status(status: number, what: string, token: Token | undefined, retryAfterMs: number | undefined): Error {
    const wait = retryAfterMs === undefined ? "" : `; it asks to wait ${Math.ceil(retryAfterMs / 1000)} s`;
    switch (status) {
      case 404:
        return new ServiceError("IMAGE_NOT_FOUND", `${what} is not in the registry ${this.#registry}`);
      case 401:
      case 403:
        if (!this.#hasLogin) return this.credentialsRequired();
        return status === 401 && token?.scheme === "basic" ? this.credentialsRejected() : this.#denied();
      case 429: {
        const message = `the registry ${this.#registry} limits how often ${this.#repository} is pulled${wait}`;
        return new Retryable(new ServiceError("REGISTRY_RATE_LIMITED", message), { retryAfterMs });
      }
      default: {
        if (status < 500) return this.violation(`answers ${what} with status ${status}`);
        const message = `the registry ${this.#registry} answers with status ${status}${wait}`;
        return new Retryable(new ServiceError("REGISTRY_UNAVAILABLE", message), { retryAfterMs });
      }
    }
  }

  credentialsRequired(): ServiceError {
    return new ServiceError(
      "REGISTRY_CREDENTIALS_REQUIRED",
      `the registry ${this.#registry} gives ${this.#repository} to nobody without a login, or has no such repository`,
    );
  }

  credentialsRejected(): ServiceError {
    return new ServiceError(
      "REGISTRY_CREDENTIALS_REJECTED",
      `the registry ${this.#registry} refuses the user name or password`,
    );
  }

  violation(why: string): ServiceError {
    return new ServiceError("REGISTRY_PROTOCOL_VIOLATED", `the registry ${this.#registry} ${why}`);
  }

  notTls(verb: string, origin: string): ServiceError {
    return new ServiceError("REGISTRY_INSECURE", `the registry ${this.#registry} ${verb} ${origin}, which is not TLS`);
  }

  tooSlow(): Retryable {
    return this.broken("sends almost nothing");
  }

  /** A transfer that may go well the next time. */
  broken(why: string): Retryable {
    return new Retryable(new ServiceError("REGISTRY_UNAVAILABLE", `the registry ${this.#registry} ${why}`));
  }

  /** Errors of ours pass; those of the network become Retryable, except where trying again cannot help. */
  transport(error: unknown): Error {
    if (error instanceof ServiceError || error instanceof Retryable) return error;
    const code = errorCode(error);
    if (!isTransportCode(code)) return error instanceof Error ? error : new Error(String(error));
    if (isCertificateCode(code)) {
      return new ServiceError(
        "REGISTRY_CERTIFICATE_UNTRUSTED",
        `the registry ${this.#registry} shows a certificate that is not trusted here (${code})`,
        { cause: error },
      );
    }
    if (speaksNoHttp(code)) return this.violation(`does not speak HTTP as it should (${code})`);
    const final = new ServiceError(
      "REGISTRY_UNAVAILABLE",
      `the registry ${this.#registry} cannot be reached (${code || "connection failed"})`,
      { cause: error },
    );
    if (isLasting(code)) return final;
    return new Retryable(final, isConnectCode(code) ? { attempts: connectAttempts } : {});
  }

  #denied(): ServiceError {
    return new ServiceError(
      "REGISTRY_ACCESS_DENIED",
      `the registry ${this.#registry} does not let this user read ${this.#repository}`,
    );
  }
}
