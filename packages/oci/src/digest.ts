import { createHash } from "node:crypto";
import { InvalidInput } from "./invalid-input.ts";

declare const brand: unique symbol;

/** `sha256:<64 hex>` or `sha512:<128 hex>`, the registered algorithms of the OCI image specification. */
export type Digest = string & { readonly [brand]: "Digest" };

const digestPattern = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

export function isDigest(text: string): text is Digest {
  return digestPattern.test(text);
}

/** Throws InvalidInput when `text` is not a digest of a registered algorithm. */
export function parseDigest(text: string): Digest {
  if (isDigest(text)) return text;
  throw new InvalidInput(`${JSON.stringify(text.slice(0, 80))} is not a sha256 or sha512 digest`);
}

export function digestAlgorithm(digest: Digest): "sha256" | "sha512" {
  return digest.startsWith("sha256:") ? "sha256" : "sha512";
}

export function digestHex(digest: Digest): string {
  return digest.slice("sha256:".length);
}

export function digestOf(bytes: Uint8Array | string, algorithm: "sha256" | "sha512" = "sha256"): Digest {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest("hex")}` as Digest;
}

/** First 12 hex digits, for messages and logs. */
export function shortDigest(digest: Digest): string {
  return `${digestAlgorithm(digest)}:${digestHex(digest).slice(0, 12)}`;
}

/** Hashes bytes as they stream by. */
export class StreamingDigest {
  readonly #algorithm: "sha256" | "sha512";
  readonly #hash;

  constructor(algorithm: "sha256" | "sha512" = "sha256") {
    this.#algorithm = algorithm;
    this.#hash = createHash(algorithm);
  }

  update(bytes: Uint8Array): void {
    this.#hash.update(bytes);
  }

  /** The digest of everything seen; call once. */
  finish(): Digest {
    return `${this.#algorithm}:${this.#hash.digest("hex")}` as Digest;
  }
}
