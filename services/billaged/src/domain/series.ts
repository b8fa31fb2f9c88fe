import { type Carry, type ClosedWindow, closeWindow } from "./close-window.ts";
import { counterCount, finalSeq, type Reading, windowMs, windowStartOf } from "./sample.ts";
import { SampleBuffer } from "./sample-buffer.ts";

/** Late readings are still taken into a window for this long after its end. */
export const graceMs = 2_000;
/** A window with samples whose series then fell silent is closed after this, with an open end. */
export const silenceMs = 120_000;

/** Who a series belongs to: see unkey.metering.v1.Series. */
export interface SeriesIdentity {
  readonly hostId: string;
  readonly vmId: string;
  readonly incarnation: number;
  readonly tenantId: string;
  readonly appId: string;
  readonly deploymentId: string;
}

/** A window together with what names it: its series and its minute. */
export interface SeriesWindow extends ClosedWindow {
  readonly startMs: number;
}

export interface SeriesSnapshot {
  readonly identity: SeriesIdentity;
  readonly baseline: ReadingSnapshot;
  readonly openFromMs: number;
  readonly carry: {
    readonly [K in keyof Carry]: Carry[K] extends readonly number[] ? readonly (number | null)[] : Carry[K];
  };
  readonly previousHash: string;
  readonly buffers: readonly { readonly startMs: number; readonly readings: readonly ReadingSnapshot[] }[];
}
type ReadingSnapshot = { readonly seq: number; readonly atMs: number; readonly values: readonly (number | null)[] };

/** The readings of one incarnation that no closed window holds yet. Windows close in order, each from where the last ended. */
export class OpenSeries {
  readonly identity: SeriesIdentity;
  readonly baseline: Reading;
  /** sha256 of the last closed window, hex; empty before the first. The meter keeps it here. */
  previousHash = "";
  #openFromMs: number;
  #carry: Carry;
  /** By start, oldest first; two at most times: the minute that closes and the one that runs. */
  #buffers: SampleBuffer[] = [];
  #endedAtMs: number | undefined;

  constructor(identity: SeriesIdentity, baseline: Reading) {
    this.identity = identity;
    this.baseline = baseline;
    this.#openFromMs = baseline.atMs;
    const gauges = baseline.values.slice(counterCount);
    this.#carry = {
      counters: baseline.values.slice(0, counterCount),
      gauges,
      gaugesAtMs: gauges.map((value) => (Number.isNaN(value) ? Number.NaN : baseline.atMs)),
      lastSeq: baseline.seq,
      lastAtMs: baseline.atMs,
    };
  }

  /** The next instant that no closed window covers. */
  get openFromMs(): number {
    return this.#openFromMs;
  }

  get openSamples(): number {
    return this.#buffers.reduce((sum, buffer) => sum + buffer.length, 0);
  }

  /** Takes a reading from the columns; false when it is a repeat or its window is closed. */
  add(seq: number, atMs: number, columns: readonly (readonly number[])[], index: number): boolean {
    if (atMs < this.#openFromMs || this.#endedAtMs !== undefined) return false;
    return this.#bufferFor(windowStartOf(atMs)).add(seq, atMs, columns, index);
  }

  /**
   * Ends the series with its final reading. An end inside time that is already closed (the end was noticed late) is
   * moved to where the open time begins, so that its counters are not lost.
   */
  end(final: Reading): void {
    const lastAtMs = this.#buffers.reduce((last, buffer) => Math.max(last, buffer.atMs(buffer.length - 1)), 0);
    const atMs = Math.max(final.atMs, this.#openFromMs, lastAtMs);
    // The final reading belongs to the last minute that the series lived in, also when it ends on a boundary.
    const startMs = windowStartOf(atMs > this.#openFromMs ? atMs - 1 : atMs);
    this.#bufferFor(startMs).addReading({ seq: finalSeq, atMs, values: final.values });
    this.#endedAtMs = atMs;
  }

  /** Closes, in order, every window up to `limitMs` that is settled; after `end` all of them. */
  close(limitMs: number, watermarkMs: number, hostWasHeard: (fromMs: number, toMs: number) => boolean): SeriesWindow[] {
    const closed: SeriesWindow[] = [];
    for (;;) {
      const startMs = windowStartOf(this.#openFromMs);
      const endMs = startMs + windowMs;
      const final = this.#endedAtMs !== undefined && this.#endedAtMs <= endMs;
      if (this.#endedAtMs === undefined) {
        if (endMs > limitMs) break;
        const livedOn = this.#buffers.some((buffer) => buffer.startMs >= endMs);
        const hasSamples = this.#buffers.some((buffer) => buffer.startMs === startMs);
        if (!livedOn && !(hasSamples && watermarkMs >= endMs + silenceMs)) break;
      }
      const toMs = final ? (this.#endedAtMs ?? endMs) : endMs;
      closed.push({ startMs, ...this.#fold(startMs, toMs, final, hostWasHeard) });
      if (final) break;
    }
    return closed;
  }

  /** The open minute as it stands at its last reading, without closing it. */
  peek(hostWasHeard: (fromMs: number, toMs: number) => boolean): SeriesWindow | undefined {
    const last = this.#buffers.at(-1);
    if (last === undefined || last.length === 0) return undefined;
    const startMs = last.startMs;
    const earlier = this.#buffers.length > 1;
    if (earlier) return undefined; // the minute before is about to close; what it carries over is not known yet
    const toMs = Math.max(this.#openFromMs, last.atMs(last.length - 1));
    const fromMs = Math.max(this.#openFromMs, startMs);
    return { startMs, ...closeWindow(this.#input(last, undefined, fromMs, toMs, false, hostWasHeard)) };
  }

  #fold(
    startMs: number,
    toMs: number,
    final: boolean,
    hostWasHeard: (fromMs: number, toMs: number) => boolean,
  ): ClosedWindow {
    const samples = this.#buffers[0]?.startMs === startMs ? this.#buffers[0] : undefined;
    const nextBuffer = this.#buffers[samples === undefined ? 0 : 1];
    const next = nextBuffer === undefined || nextBuffer.length === 0 ? undefined : nextBuffer.readings(1)[0];
    const window = closeWindow(this.#input(samples, next, this.#openFromMs, toMs, final, hostWasHeard));
    this.#openFromMs = toMs;
    this.#carry = window.carry;
    if (samples !== undefined) this.#buffers.shift();
    return window;
  }

  #input(
    samples: SampleBuffer | undefined,
    next: Reading | undefined,
    fromMs: number,
    toMs: number,
    final: boolean,
    hostWasHeard: (fromMs: number, toMs: number) => boolean,
  ) {
    const { atMs: baselineAtMs } = this.baseline;
    return { baselineAtMs, fromMs, toMs, carry: this.#carry, samples, next, final, hostWasHeard };
  }

  #bufferFor(startMs: number): SampleBuffer {
    const last = this.#buffers.at(-1);
    if (last?.startMs === startMs) return last;
    const known = this.#buffers.find((buffer) => buffer.startMs === startMs);
    if (known !== undefined) return known;
    const made = new SampleBuffer(startMs);
    this.#buffers.push(made);
    this.#buffers.sort((a, b) => a.startMs - b.startMs);
    return made;
  }

  snapshot(): SeriesSnapshot {
    const { counters, gauges, gaugesAtMs, lastSeq, lastAtMs } = this.#carry;
    return {
      identity: this.identity,
      baseline: pack(this.baseline),
      openFromMs: this.#openFromMs,
      carry: {
        counters: counters.map(toNull),
        gauges: gauges.map(toNull),
        gaugesAtMs: gaugesAtMs.map(toNull),
        lastSeq,
        lastAtMs,
      },
      previousHash: this.previousHash,
      buffers: this.#buffers.map((buffer) => ({ startMs: buffer.startMs, readings: buffer.readings().map(pack) })),
    };
  }

  static restore(snapshot: SeriesSnapshot): OpenSeries {
    const series = new OpenSeries(snapshot.identity, unpack(snapshot.baseline));
    const { counters, gauges, gaugesAtMs, lastSeq, lastAtMs } = snapshot.carry;
    series.previousHash = snapshot.previousHash;
    series.#openFromMs = snapshot.openFromMs;
    series.#carry = {
      counters: counters.map(toNaN),
      gauges: gauges.map(toNaN),
      gaugesAtMs: gaugesAtMs.map(toNaN),
      lastSeq,
      lastAtMs,
    };
    for (const { startMs, readings } of snapshot.buffers) {
      const buffer = series.#bufferFor(startMs);
      for (const reading of readings) buffer.addReading(unpack(reading));
    }
    return series;
  }
}

// JSON has no NaN.
const toNull = (value: number) => (Number.isNaN(value) ? null : value);
const toNaN = (value: number | null) => value ?? Number.NaN;
const pack = (reading: Reading): ReadingSnapshot => ({ ...reading, values: reading.values.map(toNull) });
const unpack = (reading: ReadingSnapshot): Reading => ({ ...reading, values: reading.values.map(toNaN) });
