import type { Descriptor } from "./documents.ts";
import type { FetchOptions, ImageSource } from "./image-source.ts";

const defaultParallel = 3;

/** Takes one layer's bytes to their end; what it made of them counts only when it returns. `signal` ends with the first failure. */
type TakeLayer = (descriptor: Descriptor, chunks: AsyncIterable<Uint8Array>, signal: AbortSignal) => Promise<void>;

interface StreamOptions extends FetchOptions {
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
