import { createHash, timingSafeEqual } from "node:crypto";
import type { RandomBytes } from "@unkey/base";

const secretPattern = /^unkey_([0-9a-f]{64})$/;
/** Enough of the secret to find its row by; the other 192 bits are what proves it. */
const lookupLength = 16;

/** What is kept of a key: enough to recognise it, too little to present it. */
export interface KeyDigest {
  readonly lookup: string;
  readonly sha256: Uint8Array;
}

/**
 * A new API key, `unkey_` and 256 random bits in hex. The fixed prefix lets scanners find keys that were committed or
 * pasted by accident.
 */
export function newApiKeySecret(random: RandomBytes): string {
  return `unkey_${Buffer.from(random(32)).toString("hex")}`;
}

/** The digest of a well-formed secret, or undefined. A plain SHA-256 is enough for 256 random bits. */
export function digestOfSecret(secret: string): KeyDigest | undefined {
  const body = secretPattern.exec(secret)?.[1];
  if (body === undefined) return undefined;
  return { lookup: body.slice(0, lookupLength), sha256: createHash("sha256").update(secret).digest() };
}

/** Compares in constant time. */
export function sameDigest(a: Uint8Array, b: Uint8Array): boolean {
  return a.byteLength === b.byteLength && timingSafeEqual(a, b);
}

/** The token of an `Authorization: Bearer` header (RFC 6750 §2.1), or undefined. */
export function bearerToken(authorization: string | null): string | undefined {
  return /^Bearer +([A-Za-z0-9._~+/=-]{1,512})$/i.exec(authorization ?? "")?.[1];
}
