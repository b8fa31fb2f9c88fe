import type { LogFile, LogFolder, LogPosition } from "./ports.ts";
import { encodeRecord, readHeader, readRecords, type SegmentHeader, segmentIndex, segmentName } from "./segment.ts";

export interface SegmentedLogOptions {
  readonly folder: LogFolder;
  /** A segment that has grown to this is followed by a new one. */
  readonly segmentBytes: number;
}

/** Appends that wait for the disk at most; beyond it they are refused. */
const maxQueuedBytes = 64 * 1024 * 1024;

interface Queued {
  readonly record: Uint8Array;
  readonly onDurable: (end: LogPosition) => void;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

interface KnownSegment {
  readonly index: number;
  readonly header: SegmentHeader;
  /** Where its records begin. */
  readonly start: number;
  readonly length: number;
}

/** What reading the log back found wrong. */
export interface LogDamage {
  readonly segment: number;
  /** Bytes that had been acknowledged and cannot be read. */
  readonly lostBytes: number;
}

/**
 * A write-ahead log in segments. Appends that arrive while the disk is busy share one write and one sync. A failed write or
 * sync ends its segment: what it left behind is cut off by the next segment's header, since after a failed sync nobody
 * knows what the disk holds. Each opening begins a new segment, so a torn tail is never written to again.
 */
export class SegmentedLog implements AsyncDisposable {
  readonly #folder: LogFolder;
  readonly #segmentBytes: number;
  /** Lengths by index, for the size of it all. */
  readonly #lengths = new Map<number, number>();
  #queue: Queued[] = [];
  #queuedBytes = 0;
  #writing: Promise<void> | undefined;
  #file: LogFile | undefined;
  #index = 0;
  /** How much of the current segment is durable. */
  #length = 0;
  #closed = false;

  private constructor(options: SegmentedLogOptions) {
    this.#folder = options.folder;
    this.#segmentBytes = options.segmentBytes;
  }

  /** Reads everything after `from` back to `apply`, in order, then opens a new segment. Yields what could not be read. */
  static async open(
    options: SegmentedLogOptions,
    from: LogPosition | undefined,
    apply: (payload: Uint8Array, end: LogPosition) => void,
  ): Promise<{ log: SegmentedLog; damage: LogDamage[] }> {
    const log = new SegmentedLog(options);
    const segments = await log.#load();
    const damage: LogDamage[] = [];
    let last: { index: number; length: number } | null = null;
    for (const [place, segment] of segments.entries()) {
      const { index } = segment;
      const successor = segments[place + 1]?.header.previous;
      const limit = successor?.index === index ? successor.length : segment.length;
      let end = limit;
      if (from === undefined || index >= from.segment) {
        end = Math.max(segment.start, from?.segment === index ? from.offset : 0);
        const bytes = await options.folder.read(segmentName(index));
        for (const record of readRecords(bytes.subarray(0, limit), end)) {
          end = record.end;
          apply(record.payload, { segment: index, offset: end });
        }
        const torn = place + 1 === segments.length; // the end of the last one may be: nobody was told of it
        if (!torn && end < limit) damage.push({ segment: index, lostBytes: limit - end });
      }
      log.#lengths.set(index, end);
      last = { index, length: end };
    }
    log.#index = last?.index ?? from?.segment ?? 0;
    log.#length = last?.length ?? 0;
    await log.#rotate();
    return { log, damage };
  }

  /** Segments in order. One whose header is torn never held anything and is removed. */
  async #load(): Promise<KnownSegment[]> {
    const segments: KnownSegment[] = [];
    const names = (await this.#folder.list()).toSorted();
    for (const name of names) {
      const index = segmentIndex(name);
      if (index === undefined) continue;
      const bytes = await this.#folder.read(name);
      const head = readHeader(bytes);
      if (head === undefined) await this.#folder.remove(name);
      else segments.push({ index, header: head.header, start: head.end, length: bytes.length });
    }
    return segments;
  }

  /** Bytes on disk. */
  get bytes(): number {
    let sum = 0;
    for (const length of this.#lengths.values()) sum += length;
    return sum;
  }

  /**
   * Adds a record. When it is durable, calls `onDurable` (in the order of the appends, before anything else runs), then
   * resolves. Rejects when it could not be made durable; it may then be appended again.
   */
  append(payload: Uint8Array, onDurable: (end: LogPosition) => void): Promise<void> {
    if (this.#closed) return Promise.reject(new Error("the log is closed"));
    if (this.#queuedBytes > maxQueuedBytes) return Promise.reject(new Error("the disk does not keep up"));
    const record = encodeRecord(payload);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#queue.push({ record, onDurable, resolve, reject });
    this.#queuedBytes += record.length;
    this.#writing ??= this.#write();
    return promise;
  }

  /** Removes the segments before `position`; only what a durable checkpoint no longer needs. */
  async trim(position: LogPosition): Promise<void> {
    for (const index of this.#lengths.keys()) {
      if (index >= position.segment || index === this.#index) continue;
      await this.#folder.remove(segmentName(index));
      this.#lengths.delete(index);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await this.#writing;
    await this.#file?.close();
    this.#file = undefined;
  }

  async #write(): Promise<void> {
    await Promise.resolve(); // whoever appends in the same turn shares the first write
    while (this.#queue.length > 0) {
      const group = this.#queue;
      this.#queue = [];
      try {
        if (this.#file === undefined || this.#length >= this.#segmentBytes) await this.#rotate();
        await this.#file?.append(Buffer.concat(group.map(({ record }) => record)));
        await this.#file?.sync();
      } catch (error) {
        await this.#file?.close().catch(() => undefined);
        this.#file = undefined;
        for (const { record, reject } of group) {
          this.#queuedBytes -= record.length;
          reject(error);
        }
        continue;
      }
      for (const { record, onDurable, resolve } of group) {
        this.#queuedBytes -= record.length;
        this.#length += record.length;
        onDurable({ segment: this.#index, offset: this.#length });
        resolve();
      }
      this.#lengths.set(this.#index, this.#length);
    }
    this.#writing = undefined; // in the same turn as the look at the queue: the next append starts anew
  }

  async #rotate(): Promise<void> {
    await this.#file?.close().catch(() => undefined); // everything that counts in it is durable
    this.#file = undefined;
    const previous = this.#lengths.has(this.#index) ? { index: this.#index, length: this.#length } : null;
    const index = Math.max(this.#index, ...this.#lengths.keys()) + 1;
    const header: SegmentHeader = { format: "unkey-wal-1", index, previous };
    const record = encodeRecord(Buffer.from(JSON.stringify(header)));
    await this.#folder.remove(segmentName(index)).catch(() => undefined); // left by a rotation that failed half way
    const file = await this.#folder.create(segmentName(index));
    try {
      await file.append(record);
      await file.sync();
      await this.#folder.syncEntries();
    } catch (error) {
      await file.close().catch(() => undefined);
      throw error;
    }
    this.#file = file;
    this.#index = index;
    this.#length = record.length;
    this.#lengths.set(index, record.length);
  }
}
