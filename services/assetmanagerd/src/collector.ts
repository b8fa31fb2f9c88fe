import { type AssetId, type Clock, KeyedTurns } from "@unkey/base";
import type { Counter, Gauge, Logger, Metrics } from "@unkey/daemon";
import type { Digest } from "./domain/asset.ts";
import type { CollectionRules } from "./domain/collection.ts";
import type { BlobId, BlobStore, Candidate, CollectionCatalog, HeldPart, Position, Recount } from "./ports.ts";
import type { StoredBlobs } from "./stored-blobs.ts";
import type { Uploads } from "./uploads.ts";

export interface CollectorDeps {
  readonly collection: CollectionCatalog;
  readonly store: BlobStore;
  readonly stored: StoredBlobs;
  readonly uploads: Uploads;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly gcGraceMs: number;
}

export interface Collection {
  readonly marked: Tally;
  readonly swept: Tally;
  /** Bytes that nothing refers to any more; `Removal` gives them back. */
  readonly freedBytes: number;
}

/** How many assets, and which the first ones are. */
export interface Tally {
  readonly count: number;
  readonly ids: readonly AssetId[];
}

/** Assets of a pass that are named: 100,000 ids held in memory, and then in one answer, make pauses of some 30 ms. */
const maxNamed = 1000;
/** Files that are compared with rows at a time, and rows with the assets that they count. */
const filesAtOnce = 200;
const recountsAtOnce = 200;
/** Rows that a transaction changes: as many as take about so long, since it holds the database meanwhile. */
const sliceTargetMs = 3;
const sliceSizes = { first: 50, least: 20, most: 400 };
/** What a pass may mark and sweep in all; what is left over waits for the next. */
const maxPerPass = 100_000;
const maxLogged = 10;

/**
 * Mark and sweep, one generation late: a pass removes what an earlier one marked and is garbage still, and marks what is
 * garbage now. It takes no hint, so a crash anywhere is finished by later passes. It works in slices, and everyone else's
 * calls come in between.
 */
export class Collector {
  readonly #deps: CollectorDeps;
  readonly #passes = new KeyedTurns();
  /** Blobs without an asset that the previous pass saw; only those may go, so that each gets one pass of delay. */
  #orphans: ReadonlySet<Digest> = new Set();
  readonly #freed: Counter;
  readonly #disagreements: Gauge;

  constructor(deps: CollectorDeps) {
    this.#deps = deps;
    this.#freed = deps.metrics.counter("unkey_assets_freed_bytes_total", "Bytes that collection has given back.");
    this.#disagreements = deps.metrics.gauge(
      "unkey_assets_refcount_disagreements",
      "Blobs whose count of assets is not the number of assets made of them, at the last pass.",
    );
  }

  /** One pass, after any that is under way. A dry run answers what the pass would do if nothing changed. */
  collect(signal: AbortSignal, options: { readonly dryRun?: boolean } = {}): Promise<Collection> {
    return this.#passes.run("", () => (options.dryRun === true ? this.#foretell(signal) : this.#pass(signal)));
  }

  async #pass(signal: AbortSignal): Promise<Collection> {
    const { collection, clock, gcGraceMs, uploads, log } = this.#deps;
    const nowMs = clock.nowMs();
    const rules = { pass: await collection.beginPass(nowMs), nowMs, graceMs: gcGraceMs };
    const expired = await uploads.expire();
    const swept = new Count();
    swept.add(expired.ids);
    let freedBytes = expired.bytes;
    await this.#inSlices(
      () => maxPerPass - swept.count,
      async (after, limit) => {
        const slice = await collection.sweep(rules, after, limit);
        swept.add(slice.ids);
        freedBytes += slice.freedBytes;
        return slice.end;
      },
      signal,
    );
    const marked = new Count();
    await this.#inSlices(
      () => maxPerPass - swept.count - marked.count,
      async (after, limit) => {
        const slice = await collection.mark(rules, after, limit);
        marked.add(slice.ids);
        return slice.end;
      },
      signal,
    );
    await collection.settle();
    this.#disagreements.set(await this.#recount(signal));
    const orphans = await this.#findOrphans(signal);
    let strayBytes = expired.bytes;
    for (const digest of orphans) {
      if (this.#orphans.has(digest)) strayBytes += await this.#deleteOrphan(digest, signal);
    }
    this.#orphans = orphans;
    freedBytes += strayBytes - expired.bytes;
    this.#freed.inc({}, strayBytes);
    if (swept.count > 0 || marked.count > 0 || freedBytes > 0) {
      log.info("collected", { marked: marked.count, swept: swept.count, freedBytes });
    }
    return { marked, swept, freedBytes };
  }

  /** What the next pass would do: the same slices, looked at only. */
  async #foretell(signal: AbortSignal): Promise<Collection> {
    const { collection, store, clock, gcGraceMs, uploads } = this.#deps;
    const rules = { pass: Number.MAX_SAFE_INTEGER, nowMs: clock.nowMs(), graceMs: gcGraceMs };
    const expired = await uploads.expired();
    let freedBytes = expired.reduce((sum, { bytes }) => sum + bytes, 0);
    const swept = new Set(expired.map(({ id }) => id));
    const lost = new Map<BlobId, number>();
    const parts = new FreedParts();
    parts.note(await collection.heldParts(rules, [...swept]));
    for await (const slice of this.#slices("sweepable", rules, () => maxPerPass - swept.size, signal)) {
      for (const { id, blob } of [...slice, ...(await collection.attachments(slice))]) {
        if (swept.has(id)) continue;
        swept.add(id);
        if (blob !== undefined) lost.set(blob, (lost.get(blob) ?? 0) + 1);
      }
      parts.note(
        await collection.heldParts(
          rules,
          slice.map(({ id }) => id),
        ),
      );
    }
    for (const some of inPieces([...lost], recountsAtOnce)) {
      freedBytes += await collection.bytesOf(new Map(some));
      await yieldToOthers();
    }
    const markable = parts.freed();
    const budget = maxPerPass - swept.size;
    let looked = 0;
    for await (const slice of this.#slices("markable", rules, () => budget - looked, signal)) {
      // What is attached to something swept would be gone by now.
      const left = slice.filter(({ id }) => !swept.has(id));
      looked += left.length;
      markable.push(...left);
    }
    const marked = markable
      .toSorted((a, b) => a.idleSinceMs - b.idleSinceMs || (a.id < b.id ? -1 : 1))
      .slice(0, budget)
      .map(({ id }) => id);
    for (const digest of await this.#findOrphans(signal)) {
      if (this.#orphans.has(digest)) freedBytes += (await store.size(digest, signal)) ?? 0;
    }
    return { marked: tallyOf(marked), swept: tallyOf([...swept]), freedBytes };
  }

  /** What `sweep` or `mark` would look at, slice by slice. */
  async *#slices(
    kind: "sweepable" | "markable",
    rules: CollectionRules,
    budget: () => number,
    signal: AbortSignal,
  ): AsyncGenerator<readonly Candidate[]> {
    let after: Position | undefined;
    while (budget() > 0) {
      signal.throwIfAborted();
      const { found, end } = await this.#deps.collection[kind](rules, after, Math.min(sliceSizes.first, budget()));
      yield found;
      if (end === undefined) return;
      after = end;
      await yieldToOthers();
    }
  }

  /**
   * Works through slices until one answers that nothing is left, and fits the size of the next one to the time that the last
   * one took, on this disk and under this load, with this kind of work.
   */
  async #inSlices(
    budget: () => number,
    work: (after: Position | undefined, limit: number) => Promise<Position | undefined>,
    signal: AbortSignal,
  ): Promise<void> {
    let after: Position | undefined;
    let size = sliceSizes.first;
    while (budget() > 0) {
      signal.throwIfAborted();
      const startMs = performance.now();
      after = await work(after, Math.min(size, budget()));
      if (after === undefined) return;
      const factor = Math.min(1.5, sliceTargetMs / Math.max(0.1, performance.now() - startMs));
      size = Math.max(sliceSizes.least, Math.min(sliceSizes.most, Math.round(size * factor)));
      await yieldToOthers();
    }
  }

  /** Compares the counts of contents with the assets there are; answers how many disagree. Their bytes stay. */
  async #recount(signal: AbortSignal): Promise<number> {
    const { collection, log } = this.#deps;
    let count = 0;
    for (let after: BlobId | undefined = 0; after !== undefined; ) {
      signal.throwIfAborted();
      const { disagreeing, end }: Recount = await collection.recount(after, recountsAtOnce);
      for (const { digest, refs, found } of disagreeing) {
        if (++count > maxLogged) continue;
        log.error("the count of a blob's assets is wrong; the blob is kept", { digest, refs, found });
      }
      after = end;
      await yieldToOthers();
    }
    return count;
  }

  /** Stored bytes of which nothing is known. */
  async #findOrphans(signal: AbortSignal): Promise<ReadonlySet<Digest>> {
    const { collection, store } = this.#deps;
    const orphans = new Set<Digest>();
    for await (const page of store.list(signal)) {
      for (const files of inPieces(page, filesAtOnce)) {
        signal.throwIfAborted();
        for (const digest of await collection.unknown(files)) if (orphans.size < maxPerPass) orphans.add(digest);
        await yieldToOthers();
      }
    }
    return orphans;
  }

  /** What a crash left between storing a blob and its row, or a power failure of what had been removed. */
  #deleteOrphan(digest: Digest, signal: AbortSignal): Promise<number> {
    const { collection, store, stored } = this.#deps;
    return stored.lock.run(digest, async () => {
      if ((await collection.unknown([digest])).length === 0) return 0;
      const sizeBytes = (await store.size(digest, signal)) ?? 0;
      await store.delete([digest], signal);
      return sizeBytes;
    });
  }
}

/** A tally that grows. */
class Count implements Tally {
  count = 0;
  readonly ids: AssetId[] = [];

  add(ids: readonly AssetId[]): void {
    this.count += ids.length;
    if (this.ids.length < maxNamed) this.ids.push(...ids.slice(0, maxNamed - this.ids.length));
  }
}

function tallyOf(ids: readonly AssetId[]): Tally {
  return { count: ids.length, ids: ids.slice(0, maxNamed) };
}

function* inPieces<T>(items: readonly T[], size: number): Generator<readonly T[]> {
  for (let at = 0; at < items.length; at += size) yield items.slice(at, at + size);
}

/** Parts that nothing is made of any more once certain assets are gone. */
class FreedParts {
  readonly #seen = new Map<AssetId, { readonly part: HeldPart; places: number }>();

  /** The places of parts in an asset that goes. */
  note(places: readonly HeldPart[]): void {
    for (const part of places) {
      const seen = this.#seen.get(part.id);
      if (seen === undefined) this.#seen.set(part.id, { part, places: 1 });
      else seen.places += 1;
    }
  }

  freed(): Candidate[] {
    return [...this.#seen.values()].filter(({ part, places }) => places === part.places).map(({ part }) => part);
  }
}

/** Lets timers and sockets have their turn. */
function yieldToOthers(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
