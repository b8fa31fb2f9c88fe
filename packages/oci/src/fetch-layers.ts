import { join } from "node:path";
import { type Digest, digestAlgorithm, digestHex } from "./digest.ts";
import type { Descriptor } from "./documents.ts";
import type { FetchOptions, ImageSource, ResolvedImage } from "./image-source.ts";
import { writeFileOf } from "./verified-file.ts";

/** A layer on local disk, its digest already checked. */
export interface LayerBlob {
  readonly digest: Digest;
  readonly path: string;
  readonly sizeBytes: number;
  /** Digest of the uncompressed tar stream, from the image's config. */
  readonly diffId: Digest;
}

const defaultParallel = 3;

/** Takes one layer's bytes to their end; what it made of them counts only when it returns. `signal` ends with the first failure. */
export type TakeLayer = (
  descriptor: Descriptor,
  chunks: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
) => Promise<void>;

export interface StreamOptions extends FetchOptions {
  /** Layers at once; 3 unless said. */
  readonly parallel?: number;
}

/**
 * Opens each of `descriptors` once, some at a time, and hands its verified bytes to `take`. `onBytes` is told the sum of the
 * bytes received. The first failure ends the others; returns or throws when nothing of them runs any more.
 */
export async function streamLayers(
  source: ImageSource,
  descriptors: readonly Descriptor[],
  { signal, onBytes, parallel = defaultParallel }: StreamOptions,
  take: TakeLayer,
): Promise<void> {
  const queue = [...new Map(descriptors.map((descriptor) => [descriptor.digest, descriptor])).values()];
  const failed = new AbortController();
  const both = AbortSignal.any([signal, failed.signal]);
  let total = 0;
  async function work(): Promise<void> {
    for (let descriptor = queue.shift(); descriptor !== undefined; descriptor = queue.shift()) {
      both.throwIfAborted();
      let received = 0;
      const chunks = source.openLayer(descriptor, {
        signal: both,
        onBytes: (bytes) => {
          total += bytes - received;
          received = bytes;
          onBytes?.(total);
        },
      });
      await take(descriptor, chunks, both);
    }
  }
  const workers = Array.from({ length: parallel }, () =>
    work().catch((error: unknown) => {
      failed.abort(error);
    }),
  );
  // All of them, so that none still writes when the caller cleans up; the first failure is what is told.
  await Promise.all(workers);
  both.throwIfAborted();
}

/** Fetches an image's layers into `directory`, each digest once. Lowest first. */
export async function fetchLayers(
  source: ImageSource,
  image: ResolvedImage,
  directory: string,
  options: FetchOptions,
): Promise<LayerBlob[]> {
  const pathOf = (digest: Digest): string => join(directory, `${digestAlgorithm(digest)}-${digestHex(digest)}`);
  const descriptors = image.layers.map(({ descriptor }) => descriptor);
  await streamLayers(source, descriptors, options, ({ digest }, chunks) => writeFileOf(chunks, pathOf(digest)));
  return image.layers.map(({ descriptor: { digest, sizeBytes }, diffId }) => ({
    digest,
    path: pathOf(digest),
    sizeBytes,
    diffId,
  }));
}
