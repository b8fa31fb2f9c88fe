import type { BatchOutcome } from "@unkey/api/billing";
import type { EncodedBatch } from "./domain/batch-encoding.ts";
import type { MeterSnapshot } from "./domain/meter.ts";

/** One append-only file of a log folder. */
export interface LogFile {
  /** Resolves when all bytes are handed over; they are durable only after `sync`. */
  append(bytes: Uint8Array): Promise<void>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** The folder that holds the write-ahead log and nothing else. */
export interface LogFolder {
  /** Names of its files. */
  list(): Promise<string[]>;
  read(name: string): Promise<Uint8Array>;
  /** A new empty file; fails when the name is taken. Its entry is durable after `syncEntries`. */
  create(name: string): Promise<LogFile>;
  remove(name: string): Promise<void>;
  syncEntries(): Promise<void>;
}

/** A place in the log: everything before it has been applied. */
export interface LogPosition {
  readonly segment: number;
  readonly offset: number;
}

export interface Checkpoint {
  readonly position: LogPosition;
  readonly snapshot: MeterSnapshot;
}

export interface PendingBatch extends EncodedBatch {
  /** Order of publishing. */
  readonly seq: number;
}

/** What outlives the log: the state to replay from, and the batches that nobody has confirmed yet. */
export interface MeterStore extends AsyncDisposable {
  /** Chosen once, when the store is made. */
  readonly logEpoch: bigint;
  checkpoint(): Promise<Checkpoint | undefined>;
  /** Keeps batches (one that is kept already stays as it is) and, when given, moves the checkpoint, all or nothing. */
  save(batches: readonly PendingBatch[], checkpoint?: Checkpoint): Promise<void>;
  /** Batches after `seq`, in order. */
  pending(afterSeq: number, limit: number): Promise<PendingBatch[]>;
  /** Forgets a batch that was confirmed. */
  settle(batchId: string): Promise<void>;
  backlog(): Promise<{ batches: number; bytes: number }>;
}

export interface SettledBatch {
  readonly batchId: string;
  readonly outcome: BatchOutcome;
  readonly detail: string;
}

/** Where batches go. */
export interface BatchSink {
  /** Sends what `batches` yields, in order, and yields what became of each, until `signal` or a failure ends it. */
  publish(batches: AsyncIterable<EncodedBatch>, signal: AbortSignal): AsyncIterable<SettledBatch>;
}
