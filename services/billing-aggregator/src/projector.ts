import { backoffDelayMs, type Clock, systemClock } from "@unkey/base";
import type { Gauge, Histogram, Logger, Metrics } from "@unkey/daemon";
import { latencyBucketsSeconds } from "@unkey/daemon";
import { openBatch } from "./domain/open-batch.ts";
import { resolutionMs } from "./domain/period.ts";
import { bookAt, type PriceBook } from "./domain/price-book.ts";
import type { Cursor, Inbox, InboxEntry, PriceBookStore, PricedWindow, UsageStore } from "./ports.ts";

export interface ProjectorDeps {
  readonly inbox: Inbox;
  readonly cursor: Cursor;
  readonly books: PriceBookStore;
  readonly store: UsageStore;
  readonly clock?: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
}

/** Entries of one pass: what they touch is rolled up once. */
const passEntries = 16;
const retryBackoff = { baseMs: 100, maxMs: 5_000 };

/**
 * Makes the usage store follow the inbox. It reads entries behind the cursor, writes their windows, makes anew what they
 * touch, and then moves the cursor; every step may be repeated. So a crash between any two of them costs a repetition, and
 * a store that was lost is made again by starting from the oldest entry.
 */
export class Projector implements AsyncDisposable {
  readonly #deps: ProjectorDeps;
  readonly #clock: Clock;
  readonly #stop = new AbortController();
  readonly #lag: Gauge;
  readonly #seconds: Histogram;
  #storeId = "";
  #projectedSeq = 0;
  #visibleSeq = 0;
  #wake = Promise.withResolvers<void>();
  #moved = Promise.withResolvers<void>();
  #failure: string | undefined;
  #running: Promise<void> = Promise.resolve();

  constructor(deps: ProjectorDeps) {
    this.#deps = deps;
    this.#clock = deps.clock ?? systemClock;
    this.#lag = deps.metrics.gauge("unkey_billing_unprojected_batches", "Batches taken that no query sees yet.");
    this.#seconds = deps.metrics.histogram(
      "unkey_billing_projection_seconds",
      "Duration of one pass from the inbox to the usage store.",
      latencyBucketsSeconds,
    );
  }

  /** Makes the store's tables, finds where to go on, and goes on until disposed. */
  async start(): Promise<void> {
    const { cursor, store, log } = this.#deps;
    this.#storeId = await store.prepare();
    const last = await cursor.read();
    if (last.storeId === this.#storeId) {
      this.#projectedSeq = last.seq;
      this.#visibleSeq = last.seq;
    } else {
      if (last.storeId !== "")
        log.warn("the usage store is a new one; it is made again from the inbox", { to: last.seq });
      await cursor.write({ storeId: this.#storeId, seq: 0 });
    }
    this.#running = this.#run();
  }

  /** Entries up to this one have become all that is made of them. */
  get projectedSeq(): number {
    return this.#projectedSeq;
  }

  /** Entries up to this one are in every report. */
  get visibleSeq(): number {
    return this.#visibleSeq;
  }

  /** Why the last pass failed; undefined when it did not. */
  get failure(): string | undefined {
    return this.#failure;
  }

  /** Tells that the inbox has grown. */
  wake(): void {
    this.#wake.resolve();
  }

  /** Waits until entry `seq` is in every report, at most `ms`; the caller compares `visibleSeq`. */
  async caughtUp(seq: number, ms: number): Promise<void> {
    const late = AbortSignal.timeout(ms);
    const timeout = new Promise<void>((resolve) => late.addEventListener("abort", () => resolve()));
    while (this.#visibleSeq < seq && !late.aborted) await Promise.race([this.#moved.promise, timeout]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new Error("the projector is stopped"));
    this.#wake.resolve();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { log } = this.#deps;
    for (let attempt = 0; !this.#stop.signal.aborted; ) {
      this.#wake = Promise.withResolvers();
      try {
        const more = await this.#pass();
        attempt = 0;
        this.#failure = undefined;
        if (!more) await this.#wake.promise;
      } catch (error) {
        this.#failure = error instanceof Error ? error.message : String(error);
        log.warn("projection failed; it is tried again", { error, attempt });
        await this.#clock.sleep(backoffDelayMs(retryBackoff, attempt++), this.#stop.signal).catch(() => undefined);
      }
    }
  }

  /** Projects the next entries; false when there were none. */
  async #pass(): Promise<boolean> {
    const { inbox, cursor, books, store } = this.#deps;
    const entries = await inbox.after(this.#projectedSeq, passEntries);
    const last = entries.at(-1);
    this.#lag.set(last === undefined ? 0 : (await inbox.lastSeq()) - this.#projectedSeq);
    if (last === undefined) return false;
    const startedNs = this.#clock.monotonicNs();
    const known = await books.list();
    const touched = new Map<string, Touched>();
    for (const entry of entries) {
      const windows = openEntry(entry, known);
      if (windows.length > 0) await store.insertWindows(windows, entry.envelope.batchId);
      for (const { window } of windows) touch(touched, window.hostId, window.startMs);
    }
    // A higher seq has seen more windows, so it is the version by which a rollup replaces the one before.
    const version = last.seq;
    const eachHour = async (resolution: "1m" | "5m" | "1h") => {
      for (const { hostId, hours } of touched.values()) {
        for (const hourMs of hours) await store.rollUp(resolution, hostId, hourMs, version);
      }
    };
    const eachDay = async (body: (hostId: string, dayMs: number) => Promise<void>) => {
      for (const { hostId, hours } of touched.values()) {
        const days = new Set([...hours].map((hourMs) => floorTo(hourMs, resolutionMs["1d"])));
        for (const dayMs of days) await body(hostId, dayMs);
      }
    };
    await eachHour("1h");
    await eachDay((hostId, dayMs) => store.rollUp("1d", hostId, dayMs, version));
    // Reports read windows, hours and days. What nobody waits for comes after.
    this.#visibleSeq = last.seq;
    this.#moved.resolve();
    this.#moved = Promise.withResolvers();
    await eachHour("1m");
    await eachHour("5m");
    await eachDay((hostId, dayMs) => store.recordDay(hostId, dayMs, version, known));
    await cursor.write({ storeId: this.#storeId, seq: last.seq });
    this.#projectedSeq = last.seq;
    this.#seconds.observe(Number(this.#clock.monotonicNs() - startedNs) / 1e9);
    return true;
  }
}

interface Touched {
  readonly hostId: string;
  readonly hours: Set<number>;
}

function touch(touched: Map<string, Touched>, hostId: string, startMs: number): void {
  const known = touched.get(hostId) ?? { hostId, hours: new Set() };
  known.hours.add(floorTo(startMs, resolutionMs["1h"]));
  touched.set(hostId, known);
}

function floorTo(atMs: number, grainMs: number): number {
  return Math.floor(atMs / grainMs) * grainMs;
}

/** The windows of an entry that are billed, with the book in force at each one's start. */
function openEntry({ envelope, setAside }: InboxEntry, books: readonly PriceBook[]): PricedWindow[] {
  const { batchId } = envelope;
  const opened = openBatch(envelope);
  // It was opened before it was taken, so the disk has changed it since.
  if (opened.kind !== "batch") throw new Error(`batch ${batchId} in the inbox is damaged: ${opened.why}`);
  return opened.batch.windows
    .filter((_, index) => !setAside.has(index))
    .map((window) => {
      const book = bookAt(books, window.startMs);
      if (book === undefined) throw new Error(`no price book was in force at ${window.startMs}`);
      return { window, batchId, book };
    });
}
