import { randomBytes } from "node:crypto";
import { ServiceError } from "./errors.ts";

declare const brand: unique symbol;

/** A string parsed as an id of kind `K`: `<prefix>_<26 characters>`. */
export type Id<K extends IdPrefix> = string & { readonly [brand]: K };

/** The prefix of every kind of id, by kind. */
const idPrefixes = [
  "tenant",
  "app",
  "dep",
  "vm",
  "asset",
  "lease",
  "build",
  "upload",
  "key",
  "req",
  "host",
  "op",
  "rsv",
  "snap",
  "book",
  "inv",
  "evt",
] as const;
export type IdPrefix = (typeof idPrefixes)[number];

export type TenantId = Id<"tenant">;
export type AppId = Id<"app">;
export type DeploymentId = Id<"dep">;
export type VmId = Id<"vm">;
export type AssetId = Id<"asset">;
export type LeaseId = Id<"lease">;
export type BuildId = Id<"build">;
export type UploadId = Id<"upload">;
export type ApiKeyId = Id<"key">;
export type HostId = Id<"host">;

/** Yields `count` unpredictable bytes. */
export type RandomBytes = (count: number) => Uint8Array;

// Crockford's base32 in lower case: no i, l, o, u; safe in host names, file names and netns names.
const alphabet = "0123456789abcdefghjkmnpqrstvwxyz";
const idPattern = /^([a-z]+)_([0-9a-hjkmnp-tv-z]{26})$/;

/**
 * A new id: 48 bits of milliseconds, then 80 random bits (the ULID layout, https://github.com/ulid/spec), so ids sort by
 * the time they were made.
 */
export function newId<K extends IdPrefix>(
  prefix: K,
  nowMs: number = Date.now(),
  random: RandomBytes = randomBytes,
): Id<K> {
  let bits = BigInt(nowMs);
  for (const byte of random(10)) bits = (bits << 8n) | BigInt(byte);
  let text = "";
  for (let i = 0; i < 26; i++, bits >>= 5n) text = alphabet.charAt(Number(bits & 31n)) + text;
  return `${prefix}_${text}` as Id<K>;
}

/** True when `text` is an id of kind `prefix`. */
export function isId<K extends IdPrefix>(prefix: K, text: string): text is Id<K> {
  return idPattern.exec(text)?.[1] === prefix;
}

/** Reads an id of kind `prefix`; throws INVALID_REQUEST naming `field` otherwise. */
export function parseId<K extends IdPrefix>(prefix: K, text: string, field: string): Id<K> {
  if (isId(prefix, text)) return text;
  throw new ServiceError("INVALID_REQUEST", `${field}: "${text.slice(0, 64)}" is not an id of the form ${prefix}_…`);
}
