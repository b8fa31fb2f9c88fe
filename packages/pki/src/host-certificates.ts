import { createSecureContext, type SecureContext } from "node:tls";
import { type Clock, systemClock } from "@unkey/base";
import { type Authority, maxLeafLifetimeMs } from "./authority.ts";

// RFC 1123 labels in lower case, at least one dot or exactly `localhost`.
const hostPattern = /^(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

export interface HostCertificatesOptions {
  readonly authority: Authority;
  /** The least recently used context goes when there are more. */
  readonly maxHosts?: number;
  readonly clock?: Clock;
}

/** TLS contexts for public host names, each with a leaf issued when the name is first asked for. */
export class HostCertificates {
  readonly #authority: Authority;
  readonly #maxHosts: number;
  readonly #clock: Clock;
  /** In order of use: a Map iterates in order of insertion. */
  readonly #contexts = new Map<string, { readonly context: SecureContext; readonly renewAtMs: number }>();

  constructor({ authority, maxHosts = 1000, clock = systemClock }: HostCertificatesOptions) {
    this.#authority = authority;
    this.#maxHosts = maxHosts;
    this.#clock = clock;
  }

  /**
   * The context for `host` (an SNI name), or undefined when it is no host name. The caller decides beforehand whether
   * it serves that name: each new one costs a signature.
   */
  contextFor(host: string): SecureContext | undefined {
    const name = host.toLowerCase();
    if (!hostPattern.test(name)) return undefined;
    const nowMs = this.#clock.nowMs();
    const known = this.#contexts.get(name);
    this.#contexts.delete(name);
    const entry = known !== undefined && nowMs < known.renewAtMs ? known : this.#issue(name, nowMs);
    this.#contexts.set(name, entry);
    for (const oldest of this.#contexts.keys()) {
      if (this.#contexts.size <= this.#maxHosts) break;
      this.#contexts.delete(oldest);
    }
    return entry.context;
  }

  #issue(name: string, nowMs: number) {
    const { certPem, keyPem } = this.#authority.issue({ commonName: name, names: { dnsNames: [name] } });
    return {
      context: createSecureContext({ cert: certPem, key: keyPem, minVersion: "TLSv1.3" }),
      renewAtMs: nowMs + maxLeafLifetimeMs / 2,
    };
  }
}
