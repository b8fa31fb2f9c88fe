import type { Digest } from "../digest.ts";

/** A layer on local disk, its digest already checked. */
export interface LayerBlob {
  readonly digest: Digest;
  readonly path: string;
  readonly sizeBytes: number;
  /** Digest of the uncompressed tar stream, from the image's config. */
  readonly diffId: Digest;
}
