import { ServiceError } from "@unkey/base";
import { digestAlgorithm, StreamingDigest, shortDigest } from "./digest.ts";
import type { Descriptor } from "./documents.ts";

/** Passes chunks on; throws IMAGE_DIGEST_MISMATCH as soon as they cannot be the descriptor's any more. */
export async function* verified(
  chunks: AsyncIterable<Uint8Array>,
  descriptor: Descriptor,
  what: string,
): AsyncGenerator<Uint8Array> {
  const digest = new StreamingDigest(digestAlgorithm(descriptor.digest));
  let bytes = 0;
  for await (const chunk of chunks) {
    bytes += chunk.length;
    if (bytes > descriptor.sizeBytes) throw mismatch(what, descriptor, `is longer than ${descriptor.sizeBytes} bytes`);
    digest.update(chunk);
    yield chunk;
  }
  if (bytes < descriptor.sizeBytes) {
    throw mismatch(what, descriptor, `has ${bytes} bytes instead of ${descriptor.sizeBytes}`);
  }
  const found = digest.finish();
  if (found !== descriptor.digest) throw mismatch(what, descriptor, `has the digest ${shortDigest(found)}`);
}

/** All of a small blob, checked. The caller has bounded `descriptor.sizeBytes`. */
export async function collectVerified(
  chunks: AsyncIterable<Uint8Array>,
  descriptor: Descriptor,
  what: string,
): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const chunk of verified(chunks, descriptor, what)) parts.push(chunk);
  return Buffer.concat(parts);
}

function mismatch(what: string, descriptor: Descriptor, why: string): ServiceError {
  return new ServiceError("IMAGE_DIGEST_MISMATCH", `${what} ${shortDigest(descriptor.digest)} ${why}`);
}
