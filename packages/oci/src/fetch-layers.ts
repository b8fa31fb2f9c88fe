import type { Digest } from "./digest.ts";
import type { FetchOptions, ImageSource, ResolvedImage } from "./image-source.ts";
import type { LayerBlob } from "./layer/layer-stream.ts";

const parallelFetches = 3;

/** Fetches an image's layers into `directory`, each digest once; the first failure ends the others. Lowest first. */
export async function fetchLayers(
  source: ImageSource,
  image: ResolvedImage,
  directory: string,
  { signal, onBytes }: FetchOptions,
): Promise<LayerBlob[]> {
  const wanted = new Map(image.layers.map(({ descriptor }) => [descriptor.digest, descriptor]));
  const queue = [...wanted.values()];
  const received = new Map<Digest, number>();
  const paths = new Map<Digest, string>();
  const failed = new AbortController();
  const both = AbortSignal.any([signal, failed.signal]);
  let total = 0;
  async function work(): Promise<void> {
    for (let descriptor = queue.shift(); descriptor !== undefined; descriptor = queue.shift()) {
      const { digest } = descriptor;
      const path = await source.layer(descriptor, directory, {
        signal: both,
        onBytes: (bytes) => {
          total += bytes - (received.get(digest) ?? 0);
          received.set(digest, bytes);
          onBytes?.(total);
        },
      });
      paths.set(digest, path);
    }
  }
  const workers = Array.from({ length: parallelFetches }, () =>
    work().catch((error: unknown) => {
      failed.abort(error);
      throw error;
    }),
  );
  // All of them, so that none still writes when the caller removes the directory; the first failure is what is told.
  await Promise.allSettled(workers);
  both.throwIfAborted();
  return image.layers.map(({ descriptor, diffId }) => {
    const path = paths.get(descriptor.digest);
    if (path === undefined) throw new Error(`the layer ${descriptor.digest} was not fetched`);
    return { digest: descriptor.digest, path, sizeBytes: descriptor.sizeBytes, diffId };
  });
}
