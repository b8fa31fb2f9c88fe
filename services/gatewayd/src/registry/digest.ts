import { createHash } from "node:crypto";
import { ServiceError } from "@unkey/base";

/** `sha256:<64 hex digits>`: the only algorithm that blobs are stored under. */
export type Sha256 = `sha256:${string}`;

const sha256Pattern = /^sha256:[0-9a-f]{64}$/;
/** https://github.com/opencontainers/image-spec/blob/v1.1.0/descriptor.md#digests */
const digestPattern = /^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$/;

export function isSha256(text: string): text is Sha256 {
  return sha256Pattern.test(text);
}

/** True for a well-formed digest of whatever algorithm but sha256. */
export function isForeignDigest(text: string): boolean {
  return digestPattern.test(text) && !text.startsWith("sha256:");
}

/** Throws DIGEST_INVALID, telling an unsupported algorithm from a digest that is none. */
export function parseSha256(text: string): Sha256 {
  if (isSha256(text)) return text;
  const shown = JSON.stringify(text.slice(0, 80));
  throw new ServiceError(
    "DIGEST_INVALID",
    isForeignDigest(text)
      ? `${shown} is of an algorithm that is not stored here: only sha256 is`
      : `${shown} is no digest of the form sha256:<64 hex digits>`,
  );
}

export function sha256Of(bytes: Uint8Array): Sha256 {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}
