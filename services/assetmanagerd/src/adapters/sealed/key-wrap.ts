import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { ServiceError } from "@unkey/base";

/* Keys under keys: AES-256-GCM of 32 bytes, as nonce, text and tag. What the key is for is authenticated with it. */

export const keyBytes = 32;
const nonceBytes = 12;
const tagBytes = 16;

export function wrapKey(wrapping: Uint8Array, purpose: string, key: Uint8Array): Buffer {
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv("aes-256-gcm", wrapping, nonce).setAAD(Buffer.from(purpose));
  return Buffer.concat([nonce, cipher.update(key), cipher.final(), cipher.getAuthTag()]);
}

/** Throws BLOB_KEY_INVALID when another key wrapped it, or for another purpose. */
export function unwrapKey(wrapping: Uint8Array, purpose: string, wrapped: Uint8Array): Buffer {
  const bytes = Buffer.from(wrapped);
  if (bytes.length !== nonceBytes + keyBytes + tagBytes) {
    throw new ServiceError("BLOB_KEY_INVALID", "a stored key is damaged");
  }
  const cipher = createDecipheriv("aes-256-gcm", wrapping, bytes.subarray(0, nonceBytes), { authTagLength: tagBytes });
  cipher.setAAD(Buffer.from(purpose)).setAuthTag(bytes.subarray(-tagBytes));
  try {
    return Buffer.concat([cipher.update(bytes.subarray(nonceBytes, -tagBytes)), cipher.final()]);
  } catch (cause) {
    throw new ServiceError("BLOB_KEY_INVALID", "a stored key does not open with the key that should have wrapped it", {
      cause,
    });
  }
}
