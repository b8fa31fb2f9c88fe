import { formatBytes, gib, kib, mib, ServiceError } from "@unkey/base";

/** Bounds on one image. Every one is checked before the work or memory it guards is spent. */
export interface ImageLimits {
  readonly layers: number;
  /** Sum of the layers as they travel. */
  readonly compressedBytes: number;
  /** Sum of the layers' tar streams. */
  readonly uncompressedBytes: number;
  /** One file's content. */
  readonly fileBytes: number;
  /** Tree nodes made while merging, those that a later layer removes included. */
  readonly entries: number;
  /** One path from the root, in bytes. Below PATH_MAX, so that a scratch directory fits in front. */
  readonly pathBytes: number;
  /** Directories in one path. */
  readonly depth: number;
  /** Names, link targets, attributes and data ranges of all nodes made. */
  readonly metadataBytes: number;
  /** Names and values of one file's attributes; ext4 holds little more outside its inode. */
  readonly xattrBytes: number;
  /** Uncompressed over compressed size of one layer, beyond the first 64 MiB. gzip reaches 1030 on zeros. */
  readonly compressionRatio: number;
}

export const defaultImageLimits: ImageLimits = {
  layers: 256,
  compressedBytes: 16 * gib,
  uncompressedBytes: 32 * gib,
  fileBytes: 16 * gib,
  entries: 400_000,
  pathBytes: 3072,
  depth: 128,
  metadataBytes: 128 * mib,
  xattrBytes: 3 * kib,
  compressionRatio: 500,
};

/** What one data range of a sparse file counts among the bytes of metadata. */
export const bytesPerRange = 16;

/** Throws IMAGE_TOO_LARGE when `bytes` is over the limit; `what` starts the sentence, made only then where it is a function. */
export function checkBytes(what: string | (() => string), bytes: number, limitBytes: number): void {
  if (bytes <= limitBytes) return;
  throw new ServiceError("IMAGE_TOO_LARGE", `${sentenceOf(what)} over the limit of ${formatBytes(limitBytes)}`, {
    metadata: { limitBytes: String(limitBytes) },
  });
}

/** The same for a number of things. */
export function checkCount(what: string | (() => string), count: number, limit: number): void {
  if (count <= limit) return;
  throw new ServiceError("IMAGE_TOO_LARGE", `${sentenceOf(what)} over the limit of ${limit}`, {
    metadata: { limit: String(limit) },
  });
}

function sentenceOf(what: string | (() => string)): string {
  return typeof what === "string" ? what : what();
}
