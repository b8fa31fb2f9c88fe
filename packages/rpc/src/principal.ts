import { createHash, type KeyObject, sign, verify, X509Certificate } from "node:crypto";
import { isId, ServiceError } from "@unkey/base";
import { type Identity, spiffeIdOf } from "@unkey/pki";
import type { Principal } from "./caller.ts";

/**
 * The signed principal: a JWS in compact form (RFC 7515) with ES256 over
 * `{iss, sub, tid, roles, rid, iat, exp}`, signed with the gateway's certificate key and carrying that certificate in
 * `x5c`, so a receiver needs nothing but the platform's authority to check it.
 */
const tokenType = "unkey-principal+jwt";
const issuerService = "gatewayd";
const maxTokenLength = 8192;
const maxLifetimeMs = 15 * 60_000;
/** Clocks of two hosts may differ by so much. */
const skewMs = 30_000;

export interface MintOptions {
  readonly identity: Pick<Identity, "certificate" | "privateKey">;
  readonly principal: Principal;
  readonly nowMs: number;
  /** At most 15 minutes; long work mints again. */
  readonly lifetimeMs?: number;
}

/** Signs a principal; only gatewayd's certificate is accepted by receivers. */
export function mintPrincipal({ identity, principal, nowMs, lifetimeMs = 5 * 60_000 }: MintOptions): string {
  const header = { alg: "ES256", typ: tokenType, x5c: [identity.certificate.raw.toString("base64")] };
  const payload = {
    sub: principal.subject,
    tid: principal.tenantId,
    roles: principal.roles,
    rid: principal.requestId,
    iat: Math.floor(nowMs / 1000),
    exp: Math.floor((nowMs + Math.min(lifetimeMs, maxLifetimeMs)) / 1000),
  };
  const signed = `${encode(header)}.${encode(payload)}`;
  const signature = sign("sha256", Buffer.from(signed), { key: identity.privateKey, dsaEncoding: "ieee-p1363" });
  return `${signed}.${signature.toString("base64url")}`;
}

interface Verified {
  readonly principal: Principal;
  readonly notAfterMs: number;
}

/** Checks signed principals and remembers the good ones: a check costs a signature, and each call carries one. */
export class PrincipalVerifier {
  readonly #trust: () => { readonly caCertificate: X509Certificate; readonly trustDomain: string };
  readonly #nowMs: () => number;
  readonly #maxCached: number;
  /** By digest of the token, oldest first. */
  readonly #cache = new Map<string, Verified & { readonly caFingerprint: string }>();

  constructor(options: {
    readonly trust: () => { readonly caCertificate: X509Certificate; readonly trustDomain: string };
    readonly nowMs: () => number;
    readonly maxCached?: number;
  }) {
    this.#trust = options.trust;
    this.#nowMs = options.nowMs;
    this.#maxCached = options.maxCached ?? 1000;
  }

  /** The principal in `token`; throws PRINCIPAL_INVALID, saying why. */
  verify(token: string): Principal {
    if (token.length > maxTokenLength) throw invalid(`is longer than ${maxTokenLength} characters`);
    const { caCertificate, trustDomain } = this.#trust();
    const caFingerprint = caCertificate.fingerprint256;
    const nowMs = this.#nowMs();
    const key = createHash("sha256").update(token).digest("base64");
    const cached = this.#cache.get(key);
    if (cached !== undefined && cached.caFingerprint === caFingerprint && nowMs < cached.notAfterMs) {
      return cached.principal;
    }
    this.#cache.delete(key);
    const verified = verifyToken(token, caCertificate, trustDomain, nowMs);
    this.#cache.set(key, { ...verified, caFingerprint });
    for (const oldest of this.#cache.keys()) {
      if (this.#cache.size <= this.#maxCached) break;
      this.#cache.delete(oldest);
    }
    return verified.principal;
  }
}

function verifyToken(token: string, caCertificate: X509Certificate, trustDomain: string, nowMs: number): Verified {
  const [header, payload, signature, ...rest] = token.split(".");
  if (!header || !payload || !signature || rest.length > 0) throw invalid("is not a compact JWS");
  const signer = readSigner(header, caCertificate, trustDomain, nowMs);
  if (!signatureMatches(`${header}.${payload}`, signature, signer.publicKey)) throw invalid("has a wrong signature");

  const { sub, tid, rid, roles, iat, exp } = decode(payload);
  if (typeof iat !== "number" || typeof exp !== "number") throw invalid("has no lifetime");
  if (iat * 1000 > nowMs + skewMs) throw invalid("is from the future");
  if (exp * 1000 <= nowMs - skewMs) throw invalid("has expired");
  if ((exp - iat) * 1000 > maxLifetimeMs) throw invalid("lives too long");
  if (typeof sub !== "string" || typeof rid !== "string" || typeof tid !== "string" || !isId("tenant", tid)) {
    throw invalid("names no subject, tenant or request");
  }
  if (!Array.isArray(roles) || !roles.every((role) => typeof role === "string")) throw invalid("has no list of roles");
  const notAfterMs = Math.min(exp * 1000, signer.validToDate.getTime());
  return { principal: { tenantId: tid, subject: sub, roles, requestId: rid }, notAfterMs };
}

/** The certificate in the header, when the authority issued it to the gateway and it is in force. */
function readSigner(
  header: string,
  caCertificate: X509Certificate,
  trustDomain: string,
  nowMs: number,
): X509Certificate {
  const { alg, typ, x5c } = decode(header);
  if (alg !== "ES256" || typ !== tokenType) throw invalid("is of another kind");
  const der: unknown = Array.isArray(x5c) && x5c.length === 1 ? x5c[0] : undefined;
  if (typeof der !== "string") throw invalid("does not carry one certificate");
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(Buffer.from(der, "base64"));
  } catch (cause) {
    throw invalid("carries an unreadable certificate", cause);
  }
  if (!certificate.checkIssued(caCertificate) || !certificate.verify(caCertificate.publicKey)) {
    throw invalid("was signed under another authority");
  }
  if (certificate.ca) throw invalid("was signed by an authority instead of a service");
  if (certificate.validToDate.getTime() <= nowMs || certificate.validFromDate.getTime() > nowMs + skewMs) {
    throw invalid("was signed with a certificate that is not in force");
  }
  const id = spiffeIdOf(certificate);
  if (id?.trustDomain !== trustDomain || id.service !== issuerService)
    throw invalid(`was not signed by ${issuerService}`);
  return certificate;
}

function signatureMatches(signed: string, signature: string, key: KeyObject): boolean {
  try {
    const bytes = Buffer.from(signature, "base64url");
    return bytes.length === 64 && verify("sha256", Buffer.from(signed), { key, dsaEncoding: "ieee-p1363" }, bytes);
  } catch {
    return false;
  }
}

function encode(value: unknown): string {
  return Buffer.from(JSON.stringify(value)).toString("base64url");
}

function decode(part: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(Buffer.from(part, "base64url").toString("utf8"));
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  } catch {
    // told below
  }
  throw invalid("is not JSON inside");
}

function invalid(why: string, cause?: unknown): ServiceError {
  return new ServiceError("PRINCIPAL_INVALID", `the principal that came with the call ${why}`, { cause });
}
