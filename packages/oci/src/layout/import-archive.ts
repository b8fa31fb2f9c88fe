import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { kib, ServiceError } from "@unkey/base";
import { type ByteString, printable } from "../byte-string.ts";
import { type Digest, digestAlgorithm, StreamingDigest, shortDigest } from "../digest.ts";
import { maxManifestBytes } from "../documents.ts";
import { InvalidInput, rethrowInvalid } from "../invalid-input.ts";
import { checkBytes, checkCount, type ImageLimits } from "../layer/limits.ts";
import { type TarEntry, TarReader } from "../tar/tar-reader.ts";
import { blobFile, digestOfBlobFile, indexFile, layoutFile, maxLayoutFileBytes } from "./layout-files.ts";

const maxEntries = 8192;
/** Documents and configs beside the layers. */
const sparePerLayerBytes = 64 * kib;

/**
 * Unpacks a tar archive of an OCI layout into an existing empty directory. Only `oci-layout`, `index.json` and blobs are
 * written, under names made here; every blob is checked against the digest in its name. Other files are passed over, links
 * and duplicates refused. Throws IMAGE_ARCHIVE_INVALID, IMAGE_DIGEST_MISMATCH or IMAGE_TOO_LARGE; what was written until
 * then is the caller's to remove.
 */
export async function importLayoutArchive(
  chunks: AsyncIterable<Uint8Array>,
  directory: string,
  limits: ImageLimits,
): Promise<void> {
  const reader = new TarReader(chunks);
  const maxBytes = limits.compressedBytes + limits.layers * sparePerLayerBytes;
  const seen = new Set<string>();
  let entries = 0;
  let bytes = 0;
  await mkdir(join(directory, "blobs", "sha256"), { recursive: true, mode: 0o700 });
  await mkdir(join(directory, "blobs", "sha512"), { recursive: true, mode: 0o700 });
  try {
    for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) {
      checkCount("the archive's entries are", ++entries, maxEntries);
      const wanted = memberOf(entry);
      if (wanted === undefined) continue;
      if (entry.type !== "file") throw new InvalidInput(`${printable(entry.name)} is not a regular file`);
      if (seen.has(wanted.file)) throw new InvalidInput(`${printable(entry.name)} is there twice`);
      seen.add(wanted.file);
      bytes += entry.sizeBytes;
      checkBytes("the archive is", bytes, maxBytes);
      checkBytes(`${wanted.file} is`, entry.sizeBytes, wanted.maxBytes);
      await writeMember(reader, join(directory, wanted.file), wanted.digest);
    }
    for (const file of [layoutFile, indexFile]) {
      if (!seen.has(file)) throw new InvalidInput(`it has no ${file}: it is not the tar archive of an OCI layout`);
    }
  } catch (error) {
    rethrowInvalid(error, "IMAGE_ARCHIVE_INVALID", "the image archive");
  } finally {
    await reader.close();
  }
}

interface Member {
  readonly file: string;
  readonly digest: Digest | undefined;
  readonly maxBytes: number;
}

function memberOf(entry: TarEntry): Member | undefined {
  const name: ByteString = entry.name.replace(/^(?:\.?\/)+/, "");
  if (name === layoutFile) return { file: layoutFile, digest: undefined, maxBytes: maxLayoutFileBytes };
  if (name === indexFile) return { file: indexFile, digest: undefined, maxBytes: maxManifestBytes };
  const digest = digestOfBlobFile(name);
  return digest === undefined ? undefined : { file: blobFile(digest), digest, maxBytes: Number.MAX_SAFE_INTEGER };
}

async function writeMember(reader: TarReader, path: string, digest: Digest | undefined): Promise<void> {
  const hash = digest === undefined ? undefined : new StreamingDigest(digestAlgorithm(digest));
  const file = await open(path, "wx", 0o600);
  try {
    for await (const chunk of reader.content()) {
      hash?.update(chunk);
      for (let at = 0; at < chunk.length; ) at += (await file.write(chunk, at)).bytesWritten;
    }
  } finally {
    await file.close();
  }
  const found = hash?.finish();
  if (digest !== undefined && found !== undefined && found !== digest) {
    throw new ServiceError(
      "IMAGE_DIGEST_MISMATCH",
      `the archive's blob ${shortDigest(digest)} has the digest ${shortDigest(found)}`,
    );
  }
}
