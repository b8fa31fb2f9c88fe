import { mkdir, rm, stat } from "node:fs/promises";
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
import { choosePartLayers, isWorthAPart } from "./domain/parts.ts";
import type { CachedLayer, LayerCache, LayerKey, LayerUser } from "./layer-cache/layer-cache.ts";
import type { StoredPart } from "./store-part.ts";
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
  /** A layer lies in the directory of that name, below `directory`. */
  readonly onHere: (digest: Digest, name: string) => void;
  /** Told before anything is fetched, and after each layer: how many are still to be unpacked. */
  readonly onLeft: (layers: number) => void;
  /** Whether contents may be parts at all. */
  readonly takesParts: boolean;
  /** Stores the content of a layer, at `path`, as a part. Layers are still coming meanwhile. */
  readonly storePart: (layer: LayerKey, path: string) => Promise<StoredPart>;
  readonly say: (text: string) => Promise<void>;
}

interface Wanted {
  readonly layer: CachedLayer;
  readonly slot: string;
}

/**
 * Brings an image's layers into one directory: those of the cache that the tenant may have are linked, the others are unpacked while
 * they are fetched and stay in the cache. Each is stored as a part as soon as it is here, if it is to be one. Answers, when all layers are
 * here, their parts, lowest first, which are perhaps still being stored and read `directory`; of a layer that the image has twice the
 * upper place hides the lower and alone has it. Throws what the source and the workers throw.
 */
export async function bringLayers(options: BringLayersOptions): Promise<(Promise<StoredPart> | undefined)[]> {
  const { directory, takesParts } = options;
  await mkdir(directory, { recursive: true, mode: 0o755 });
  const places = new Map<Digest, Wanted & { readonly last: number }>();
  for (const [index, layer] of options.layers.entries()) {
    const { digest } = layer.descriptor;
    places.set(digest, { layer, slot: places.get(digest)?.slot ?? String(index), last: index });
  }
  const chosen = takesParts ? choosePartLayers(options.layers.map(({ descriptor }) => descriptor)) : new Set();
  const parts = new Map<Digest, Promise<StoredPart>>();
  const onHere = async ({ layer: { descriptor, diffId }, slot }: Wanted): Promise<void> => {
    const { digest } = descriptor;
    options.onHere(digest, slot);
    const path = join(directory, slot, "content");
    if (!chosen.has(digest) || !isWorthAPart((await stat(path)).size)) return;
    const part = options.storePart({ digest, diffId }, path);
    part.catch(() => undefined); // told to the caller
    parts.set(digest, part);
  };
  try {
    await bringEach(options, [...places.values()], onHere);
  } catch (error) {
    await Promise.allSettled(parts.values()); // they read what the caller may remove now
    throw error;
  }
  return options.layers.map(({ descriptor: { digest } }, index) =>
    places.get(digest)?.last === index ? parts.get(digest) : undefined,
  );
}

async function bringEach(
  options: BringLayersOptions,
  wanted: readonly Wanted[],
  onHere: (one: Wanted) => Promise<void>,
): Promise<void> {
  const { cache, user, directory, signal, onMissing, onAllFetched, say } = options;
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
  for (const one of linked) await onHere(one);
  options.onLeft(missing.length);
  if (missing.length === 0) await onAllFetched();
  else await fetchMissing(options, missing, missingBytes, onHere);
}

async function fetchMissing(
  options: BringLayersOptions,
  missing: readonly Wanted[],
  missingBytes: number,
  onHere: (one: Wanted) => Promise<void>,
): Promise<void> {
  const { cache, workers, user, name, scratchDirectory, directory, limits, signal, say } = options;
  const byDigest = new Map(missing.map((one) => [one.layer.descriptor.digest, one]));
  const unpacked = new Map<Digest, number>();
  let whole = 0;
  let left = missing.length;
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
      await onHere(one);
      options.onLeft(--left);
      await rm(own, { recursive: true, force: true });
      await say(`unpacked ${shortDigest(digest)}, ${formatBytes(sizeBytes)}`);
    },
  );
  options.onUnpacked(missingBytes);
  await toldAll;
}
