import type { Judgement, SeriesHead } from "./domain/check-window.ts";
import type { BatchEnvelope, OpenBatch } from "./domain/open-batch.ts";
import type { Resolution, Segment } from "./domain/period.ts";
import type { PriceBook } from "./domain/price-book.ts";
import type { SeriesGap } from "./domain/usage-report.ts";
import type { UsageUnit } from "./domain/usage-unit.ts";
import type { UsageWindow } from "./domain/usage-window.ts";

/** A batch that was taken, with its place in the order of taking. */
export interface InboxEntry {
  readonly seq: number;
  readonly envelope: BatchEnvelope;
  /** Places of the windows that are not billed. */
  readonly setAside: ReadonlySet<number>;
}

export type Acceptance =
  | { readonly kind: "accepted"; readonly seq: number; readonly setAside: Judgement["setAside"] }
  /** The same bytes were taken before. */
  | { readonly kind: "duplicate" }
  /** Other bytes were taken under this id. */
  | { readonly kind: "conflict" };

/** How far what was taken reaches, for those who ask how complete a report is. */
export interface Progress {
  /** The least that a series which has not ended is known to. */
  readonly openSeriesMs: number | undefined;
  /** The least minute that a host which was heard of since `aliveSinceMs` has reached. */
  readonly hostsMs: number | undefined;
  /** The least minute among the batches that were taken after `afterSeq`. */
  readonly unprojectedMs: number | undefined;
}

/**
 * The authority: every batch as it was received, in order. What it acknowledged survives a crash. Everything else can be
 * made again from it, for as long as it keeps batches.
 */
export interface Inbox {
  /**
   * Takes a batch once. `judge` decides, within the same transaction, on the windows and on how the heads of their
   * series move. Throws INBOX_FULL.
   */
  accept(
    envelope: BatchEnvelope,
    batch: OpenBatch,
    receivedAtMs: number,
    judge: (heads: ReadonlyMap<string, SeriesHead>) => Judgement,
  ): Promise<Acceptance>;
  /** Keeps a batch that cannot be taken, for somebody to look at. Throws INBOX_FULL when there are too many. */
  quarantine(envelope: BatchEnvelope, receivedAtMs: number, why: string): Promise<void>;
  /** Entries after `seq`, oldest first. */
  after(seq: number, limit: number): Promise<InboxEntry[]>;
  /** Number of the last entry that was taken; 0 before the first. */
  lastSeq(): Promise<number>;
  /** Forgets entries up to `projectedSeq` that are older than `olderThanMs`, and the oldest beyond the size limit. */
  prune(projectedSeq: number, olderThanMs: number): Promise<number>;
  progress(query: {
    readonly tenantId: string;
    readonly appId: string;
    readonly vmId: string;
    readonly aliveSinceMs: number;
    readonly afterSeq: number;
  }): Promise<Progress>;
}

/** Which store was projected into, and how far. */
export interface Cursor {
  read(): Promise<{ readonly storeId: string; readonly seq: number }>;
  write(cursor: { readonly storeId: string; readonly seq: number }): Promise<void>;
}

export interface PriceBookStore {
  /** All of them, newest first. */
  list(): Promise<PriceBook[]>;
  /** Adds a book, or answers the one that has its id or its effective instant. */
  add(book: PriceBook): Promise<{ readonly added: boolean; readonly book: PriceBook }>;
}

/** A window together with what it is priced by. */
export interface PricedWindow {
  readonly window: UsageWindow;
  readonly batchId: string;
  readonly book: PriceBook;
}

export interface UsageQuery {
  readonly tenantId: string;
  /** Empty for all. */
  readonly appId: string;
  /** Empty for all. */
  readonly vmId: string;
}

export interface StoredRecord {
  readonly startMs: number;
  readonly incarnation: number;
  readonly hostId: string;
  readonly hash: string;
  readonly record: Uint8Array;
}

/** Windows, and what is derived from them. Everything is idempotent: the same call again changes nothing. */
export interface UsageStore {
  /** Makes what is missing; answers the store's id, which a store that was lost and made anew does not share. */
  prepare(): Promise<string>;
  insertWindows(windows: readonly PricedWindow[], token: string): Promise<void>;
  /**
   * Makes a rollup of a host anew: of one hour from its windows, of one day from its hours. Of two results the one with the
   * higher version stays.
   */
  rollUp(resolution: Resolution, hostId: string, fromMs: number, version: number): Promise<void>;
  /** Makes the billing records of a host's day anew from its rollup. */
  recordDay(hostId: string, dayMs: number, version: number, books: readonly PriceBook[]): Promise<void>;
  /** Usage of a tenant in a segment: one unit per series and price book. Throws USAGE_TOO_LARGE. */
  units(query: UsageQuery, segment: Segment): Promise<UsageUnit[]>;
  /** Gaps of the windows that begin in the period, oldest first, at most `limit`. */
  gaps(query: UsageQuery, period: Omit<Segment, "source">, limit: number): Promise<SeriesGap[]>;
  /** A VM's windows as they were received, in the order of minute, incarnation and host; at most `limit` after `after`. */
  records(
    query: UsageQuery,
    period: Omit<Segment, "source">,
    after: StoredRecord | undefined,
    limit: number,
  ): Promise<StoredRecord[]>;
  ping(): Promise<void>;
}
