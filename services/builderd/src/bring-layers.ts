import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { formatBytes } from "@unkey/base";
import {
  type Digest,
  type ImageLimits,
  type ImageSource,
  type ResolvedImage,
  shortDigest,
  streamLayers,
} from "@unkey/oci";
import type { CachedLayer, LayerCache, LayerUser } from "./layer-cache/layer-cache.ts";
import { type ImageWorkers, parallelLayers } from "./worker/image-workers.ts";

export interface BringLayersOptions {
  readonly cache: LayerCache;
  readonly workers: ImageWorkers;
  readonly user: LayerUser & { readonly source: ImageSource };
  readonly layers: ResolvedImage["layers"];
  /** Names the build's processes. */
  readonly name: string;
  /** Exists; what is made in it beside `directory` is removed again. */
  readonly scratchDirectory: string;
  /** Does not exist; the layers come to lie below it. */
  readonly directory: string;
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
  /** Told once, before anything is fetched. */
  readonly onMissing: (bytes: number) => Promise<void>;
  /** Of the missing layers, as they travel. */
  readonly onFetched: (bytes: number) => void;
  /** Told once: every missing byte is here and is the image's. */
  readonly onAllFetched: () => Promise<void>;
  readonly onUnpacked: (bytes: number) => void;
  readonly say: (text: string) => Promise<void>;
}

/** A layer and the name of its directory; one that the image has twice lies once. */
export interface LayerPlace {
  readonly digest: Digest;
  readonly diffId: Digest;
  readonly directory: string;
}

/**
 * Brings an image's layers into one directory: those of the cache that the tenant may have are linked, the others are unpacked while
 * they are fetched and stay in the cache. Lowest first. Throws what the source and the workers throw.
 */
export async function bringLayers(options: BringLayersOptions): Promise<LayerPlace[]> {
  const { cache, user, directory, signal, onMissing, onAllFetched, say } = options;
  await mkdir(directory, { recursive: true, mode: 0o755 });
  const places = new Map<Digest, { readonly layer: CachedLayer; readonly slot: string }>();
  for (const [index, layer] of options.layers.entries()) {
    if (!places.has(layer.descriptor.digest)) places.set(layer.descriptor.digest, { layer, slot: String(index) });
  }
  const wanted = [...places.values()];
  const isHere = await Promise.all(
    wanted.map(({ layer, slot }) => cache.take(layer, user, join(directory, slot), signal)),
  );
  const missing = wanted.filter((_, index) => isHere[index] !== true);
  const missingBytes = missing.reduce((sum, { layer }) => sum + layer.descriptor.sizeBytes, 0);
  const linked = wanted.filter((_, index) => isHere[index] === true);
  if (linked.length > 0) {
    await say(`from the layer cache: ${linked.map(({ layer }) => shortDigest(layer.descriptor.digest)).join(", ")}`);
  }
  await say(`fetching ${missing.length} of ${wanted.length} layers, ${formatBytes(missingBytes)}`);
  await onMissing(missingBytes);
  if (missing.length === 0) await onAllFetched();
  else await fetchMissing(options, missing, missingBytes);
  return options.layers.map(({ descriptor: { digest }, diffId }) => {
    const place = places.get(digest);
    if (place === undefined) throw new Error(`the layer ${digest} has no place`);
    return { digest, diffId, directory: place.slot };
  });
}

async function fetchMissing(
  options: BringLayersOptions,
  missing: readonly { readonly layer: CachedLayer; readonly slot: string }[],
  missingBytes: number,
): Promise<void> {
  const { cache, workers, user, name, scratchDirectory, directory, limits, signal, say } = options;
  const byDigest = new Map(missing.map((one) => [one.layer.descriptor.digest, one]));
  const unpacked = new Map<Digest, number>();
  let whole = 0;
  let toldAll: Promise<void> | undefined;
  /** Counts a layer when its last byte has come and its digest was right. */
  async function* counted(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    yield* chunks;
    if (++whole === byDigest.size) toldAll = options.onAllFetched();
  }
  // The largest first: the last to end is then a small one.
  const descriptors = missing.map(({ layer }) => layer.descriptor).toSorted((a, b) => b.sizeBytes - a.sizeBytes);
  await streamLayers(
    user.source,
    descriptors,
    { signal, parallel: parallelLayers, onBytes: options.onFetched },
    async ({ digest, sizeBytes }, chunks, both) => {
      const one = byDigest.get(digest);
      if (one === undefined) throw new Error(`the layer ${digest} was not asked for`);
      const { layer, slot } = one;
      const own = join(scratchDirectory, `layer-${slot}`);
      const made = await workers.unpackLayer({
        name: `${name}-layer-${slot}`,
        layer,
        chunks: counted(chunks),
        directory: own,
        limits,
        signal: both,
        onBytes: (done) => {
          unpacked.set(digest, done);
          options.onUnpacked([...unpacked.values()].reduce((sum, bytes) => sum + bytes, 0));
        },
      });
      unpacked.set(digest, sizeBytes);
      await cache.put(layer, user, made, join(directory, slot));
      await rm(own, { recursive: true, force: true });
      await say(`unpacked ${shortDigest(digest)}, ${formatBytes(sizeBytes)}`);
    },
  );
  options.onUnpacked(missingBytes);
  await toldAll;
}
