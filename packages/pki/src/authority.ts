import { type KeyObject, X509Certificate } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { type Clock, isErrno, ServiceError, systemClock } from "@unkey/base";
import { type KeyAndCertificate, makeAuthority, makeLeaf, readPrivateKey, type SubjectNames } from "./certificate.ts";

const dayMs = 86_400_000;
const authorityLifetimeMs = 3650 * dayMs;
/** Certificates are renewed rather than revoked, so none lives longer. */
export const maxLeafLifetimeMs = dayMs;
/** A clock that is a little behind ours must not see a certificate from the future. */
const backdateMs = 60_000;

const keyFile = "ca.key";
const certFile = "ca.crt";
const constraintsFile = "constraints.json";

export interface AuthorityOptions {
  /** The authority's name, as a browser shows it. */
  readonly commonName: string;
  /**
   * The authority can then vouch for names under these domains only, so that trusting it cannot put any other site at
   * risk. An existing authority with other constraints is refused.
   */
  readonly permittedDns?: readonly string[];
  readonly clock?: Clock;
}

/** A certificate authority on local disk: `ca.key` (0600) and `ca.crt` in a directory of mode 0700. */
export class Authority {
  readonly certPem: string;
  readonly certificate: X509Certificate;
  readonly #privateKey: KeyObject;
  readonly #commonName: string;
  readonly #clock: Clock;

  private constructor(certPem: string, certificate: X509Certificate, privateKey: KeyObject, clock: Clock) {
    this.certPem = certPem;
    this.certificate = certificate;
    this.#privateKey = privateKey;
    this.#commonName = /^CN=(.*)$/m.exec(certificate.subject)?.[1] ?? "";
    this.#clock = clock;
  }

  /**
   * Opens the authority in `dir`, and makes it if there is none. Of two processes that start together one makes it and
   * both use that one. Throws AUTHORITY_UNUSABLE.
   */
  static open(dir: string, options: AuthorityOptions): Authority {
    const { clock = systemClock } = options;
    const constraints = JSON.stringify(options.permittedDns?.toSorted() ?? []);
    if (!existsSync(join(dir, keyFile))) createDirectory(dir, options, constraints, clock.nowMs());
    try {
      return Authority.#load(dir, constraints, clock);
    } catch (cause) {
      if (cause instanceof ServiceError) throw cause;
      throw unusable(dir, "cannot be read", cause);
    }
  }

  static #load(dir: string, constraints: string, clock: Clock): Authority {
    for (const path of [dir, join(dir, keyFile)]) {
      if ((statSync(path).mode & 0o077) !== 0) throw unusable(dir, `${path} is open to others; run chmod go= on it`);
    }
    const certPem = readFileSync(join(dir, certFile), "utf8");
    const certificate = new X509Certificate(certPem);
    const privateKey = readPrivateKey(readFileSync(join(dir, keyFile), "utf8"));
    if (!certificate.checkPrivateKey(privateKey)) throw unusable(dir, `${keyFile} does not belong to ${certFile}`);
    if (!certificate.ca) throw unusable(dir, `${certFile} is not an authority's certificate`);
    if (certificate.validToDate.getTime() <= clock.nowMs()) throw unusable(dir, `expired on ${certificate.validTo}`);
    if (readFileSync(join(dir, constraintsFile), "utf8") !== constraints) {
      throw unusable(dir, "was made for other domains; move the directory away to have a new one made");
    }
    return new Authority(certPem, certificate, privateKey, clock);
  }

  /** Signs a leaf for `names` that lives `lifetimeMs`, at most 24 hours. */
  issue(options: {
    readonly commonName: string;
    readonly names: SubjectNames;
    readonly lifetimeMs?: number;
  }): KeyAndCertificate {
    const { lifetimeMs = maxLeafLifetimeMs } = options;
    if (!(lifetimeMs > 0 && lifetimeMs <= maxLeafLifetimeMs)) {
      throw new RangeError(`a leaf lives at most ${maxLeafLifetimeMs} ms, not ${lifetimeMs}`);
    }
    const nowMs = this.#clock.nowMs();
    return makeLeaf(
      { ...options, notBeforeMs: nowMs - backdateMs, notAfterMs: nowMs + lifetimeMs },
      { commonName: this.#commonName, privateKey: this.#privateKey },
    );
  }
}

/** A whole directory appears by one rename, so nobody ever sees a key without its certificate. */
function createDirectory(dir: string, options: AuthorityOptions, constraints: string, nowMs: number): void {
  mkdirSync(dirname(dir), { recursive: true, mode: 0o700 });
  const temporary = mkdtempSync(`${dir}.`); // mode 0700
  try {
    const { keyPem, certPem } = makeAuthority({
      ...options,
      notBeforeMs: nowMs - backdateMs,
      notAfterMs: nowMs + authorityLifetimeMs,
    });
    writeFileSync(join(temporary, keyFile), keyPem, { mode: 0o600, flush: true });
    writeFileSync(join(temporary, certFile), certPem, { mode: 0o644, flush: true });
    writeFileSync(join(temporary, constraintsFile), constraints, { mode: 0o644, flush: true });
    renameSync(temporary, dir);
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    // Another process was first: its directory is not empty, so ours could not replace it.
    if (isErrno(error, "ENOTEMPTY", "EEXIST")) return;
    throw unusable(dir, "cannot be created", error);
  }
}

function unusable(dir: string, why: string, cause?: unknown): ServiceError {
  return new ServiceError("AUTHORITY_UNUSABLE", `the certificate authority in ${dir} ${why}`, { cause });
}
