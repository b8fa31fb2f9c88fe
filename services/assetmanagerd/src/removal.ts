import type { Clock } from "@unkey/base";
import type { Counter, Logger, Metrics } from "@unkey/daemon";
import type { BlobStore, RemovalCatalog, Unused } from "./ports.ts";
import type { StoredBlobs } from "./stored-blobs.ts";

export interface RemovalDeps {
  readonly catalog: RemovalCatalog;
  readonly store: BlobStore;
  readonly stored: StoredBlobs;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
}

/** Contents that are looked up at a time, and those of them whose bytes are removed at a time. */
const pageSize = 2000;
const batchSize = 32;
/** Between batches it rests so many times as long as the last one took, so that a disk that others use too is left to them. */
const restFactor = 3;
const leastRestMs = 2;

/**
 * Gives the bytes of content back that nothing refers to any more, behind everyone's back: a collection pass ends when its
 * rows are gone. A crash anywhere is finished by the next pass; content that is stored again meanwhile is left alone.
 */
export class Removal {
  readonly #deps: RemovalDeps;
  readonly #freed: Counter;

  constructor(deps: RemovalDeps) {
    this.#deps = deps;
    this.#freed = deps.metrics.counter("unkey_assets_freed_bytes_total", "Bytes that collection has given back.");
  }

  /** Removes everything that nothing refers to, slowly. */
  async pass(signal: AbortSignal): Promise<void> {
    const { catalog, clock, log } = this.#deps;
    let [blobs, bytes] = [0, 0];
    for (;;) {
      const page = await catalog.unused(pageSize);
      if (page.length === 0) break;
      for (let at = 0; at < page.length; at += batchSize) {
        signal.throwIfAborted();
        const startMs = performance.now();
        const batch = page.slice(at, at + batchSize);
        bytes += await this.#remove(batch, signal);
        blobs += batch.length;
        await clock.sleep(Math.ceil(Math.max(leastRestMs, restFactor * (performance.now() - startMs))), signal);
      }
    }
    if (blobs > 0) log.info("bytes that nothing refers to were removed", { blobs, bytes });
  }

  /** Removes some of it at once, for somebody who needs the room; false when there is nothing to remove. */
  async hurry(signal: AbortSignal): Promise<boolean> {
    const batch = await this.#deps.catalog.unused(batchSize);
    await this.#remove(batch, signal);
    return batch.length > 0;
  }

  /** Bytes first, then rows: what a crash leaves is found again. */
  #remove(batch: readonly Unused[], signal: AbortSignal): Promise<number> {
    const { catalog, store, stored } = this.#deps;
    const sizes = new Map(batch.map(({ digest, sizeBytes }) => [digest, sizeBytes]));
    return stored.lock.run(sizes.keys(), async () => {
      const digests = await catalog.stillUnused([...sizes.keys()]);
      await store.delete(digests, signal);
      await catalog.forget(digests);
      const bytes = digests.reduce((sum, digest) => sum + (sizes.get(digest) ?? 0), 0);
      this.#freed.inc({}, bytes);
      return bytes;
    });
  }
}
