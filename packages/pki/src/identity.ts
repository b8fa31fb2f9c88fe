import { type KeyObject, X509Certificate } from "node:crypto";
import { mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { type Clock, isErrno, ServiceError, systemClock } from "@unkey/base";
import { type Authority, maxLeafLifetimeMs } from "./authority.ts";
import { readPrivateKey } from "./certificate.ts";
import { writeFileAtomicSync } from "./files.ts";
import { formatSpiffeId, type SpiffeId, spiffeIdOf } from "./spiffe.ts";

/** The names that cert-manager and Kubernetes TLS secrets use, so that an operator's authority fits without a script. */
const files = { cert: "tls.crt", key: "tls.key", ca: "ca.crt" } as const;

/** What a process shows its peers, and the authority by which it judges them. */
export interface Identity {
  readonly id: SpiffeId;
  readonly certPem: string;
  readonly keyPem: string;
  readonly caPem: string;
  readonly certificate: X509Certificate;
  readonly caCertificate: X509Certificate;
  readonly privateKey: KeyObject;
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
}

export interface IdentityOptions {
  /** Refuses a certificate of another service. */
  readonly service?: string;
  /** Refuses a certificate of another trust domain. */
  readonly trustDomain?: string;
  readonly clock?: Clock;
}

/**
 * Reads `tls.crt`, `tls.key` and `ca.crt` in `dir`. Throws IDENTITY_UNUSABLE, saying which file is missing, open to
 * others, expired, of another authority, of another service or without its key.
 */
export function loadIdentity(dir: string, options: IdentityOptions = {}): Identity {
  const { clock = systemClock } = options;
  const certPem = readPem(dir, files.cert);
  const keyPem = readPem(dir, files.key);
  const caPem = readPem(dir, files.ca);
  const identity = parse(dir, certPem, keyPem, caPem);
  const nowMs = clock.nowMs();
  const { certificate, caCertificate, id } = identity;
  const refuse = (why: string): never => {
    throw unusable(dir, why);
  };
  if (!certificate.checkPrivateKey(identity.privateKey)) refuse(`${files.key} is not the key of ${files.cert}`);
  if (!certificate.verify(caCertificate.publicKey))
    refuse(`${files.cert} was not signed by the authority in ${files.ca}`);
  if (caCertificate.validToDate.getTime() <= nowMs)
    refuse(`the authority in ${files.ca} expired on ${caCertificate.validTo}`);
  if (identity.expiresAtMs <= nowMs) refuse(`${files.cert} expired on ${certificate.validTo}`);
  if (identity.issuedAtMs > nowMs) refuse(`${files.cert} is not valid before ${certificate.validFrom}`);
  if (options.trustDomain !== undefined && id.trustDomain !== options.trustDomain) {
    refuse(`${files.cert} belongs to the trust domain ${id.trustDomain}, not to ${options.trustDomain}`);
  }
  if (options.service !== undefined && id.service !== options.service) {
    refuse(`${files.cert} speaks for ${id.service}, not for ${options.service}`);
  }
  return identity;
}

function parse(dir: string, certPem: string, keyPem: string, caPem: string): Identity {
  const certificate = parseFile(dir, files.cert, () => new X509Certificate(certPem));
  const caCertificate = parseFile(dir, files.ca, () => new X509Certificate(caPem));
  const id = spiffeIdOf(certificate);
  if (id === undefined) throw unusable(dir, `${files.cert} carries no name of the form spiffe://<domain>/<service>`);
  return {
    id,
    certPem,
    keyPem,
    caPem,
    certificate,
    caCertificate,
    privateKey: parseFile(dir, files.key, () => readPrivateKey(keyPem)),
    issuedAtMs: certificate.validFromDate.getTime(),
    expiresAtMs: certificate.validToDate.getTime(),
  };
}

function readPem(dir: string, file: string): string {
  const path = join(dir, file);
  try {
    const open = file === files.key && (statSync(path).mode & 0o077) !== 0;
    if (!open) return readFileSync(path, "utf8");
  } catch (cause) {
    throw unusable(dir, isErrno(cause, "ENOENT") ? `${file} is missing` : `${file} cannot be read`, cause);
  }
  throw unusable(dir, `${file} can be read by others; run chmod 600 on it`);
}

function parseFile<T>(dir: string, file: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw unusable(dir, `${file} is not PEM of the right kind`, cause);
  }
}

function unusable(dir: string, why: string, cause?: unknown): ServiceError {
  return new ServiceError("IDENTITY_UNUSABLE", `the identity in ${dir} cannot be used: ${why}`, { cause });
}

export interface IdentityRequest {
  readonly id: SpiffeId;
  /** Further names that the server is reached by; service-to-service calls look at the SPIFFE id alone. */
  readonly dnsNames?: readonly string[];
  readonly ips?: readonly string[];
  readonly lifetimeMs?: number;
}

/**
 * Makes sure that `dir` holds an identity for `request` that has at least half of its life before it; answers whether
 * it had to issue one. A supervisor calls this before each start and every few minutes; daemons notice the renewal.
 */
export function ensureIdentity(
  authority: Authority,
  dir: string,
  request: IdentityRequest,
  clock: Clock = systemClock,
): boolean {
  const { id, lifetimeMs = maxLeafLifetimeMs } = request;
  try {
    const current = loadIdentity(dir, { clock });
    const fresh = current.expiresAtMs - clock.nowMs() > lifetimeMs / 2;
    const same = formatSpiffeId(current.id) === formatSpiffeId(id) && current.caPem === authority.certPem;
    if (fresh && same) return false;
  } catch {
    // Whatever is wrong with it, a new one replaces it.
  }
  const { keyPem, certPem } = authority.issue({
    commonName: id.instance === undefined ? id.service : `${id.service} ${id.instance}`,
    names: {
      uris: [formatSpiffeId(id)],
      dnsNames: request.dnsNames ?? ["localhost"],
      ips: request.ips ?? ["127.0.0.1", "::1"],
    },
    lifetimeMs,
  });
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  // A reader between these renames finds a key without its certificate, keeps what it has and looks again.
  writeFileAtomicSync(join(dir, files.ca), authority.certPem, 0o644);
  writeFileAtomicSync(join(dir, files.key), keyPem, 0o600);
  writeFileAtomicSync(join(dir, files.cert), certPem, 0o644);
  return true;
}
