import { open, rm } from "node:fs/promises";
import { ServiceError } from "@unkey/base";
import { digestAlgorithm, StreamingDigest, shortDigest } from "./digest.ts";
import type { Descriptor } from "./documents.ts";

/** Writes chunks to a new file, which is gone again when they end in an error. Throws ROOTFS_DISK_FULL, and what `chunks` throw. */
export async function writeFileOf(chunks: AsyncIterable<Uint8Array>, path: string): Promise<void> {
  let whole = false;
  const file = await open(path, "wx", 0o600);
  try {
    for await (const chunk of chunks) {
      for (let at = 0; at < chunk.length; ) at += (await file.write(chunk, at)).bytesWritten;
    }
    whole = true;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOSPC") {
      throw new ServiceError("ROOTFS_DISK_FULL", "the build's disk is full", { cause: error });
    }
    throw error;
  } finally {
    await file.close();
    if (!whole) await rm(path, { force: true });
  }
}

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
