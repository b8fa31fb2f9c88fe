import { GaugeIntegral } from "./gauge-integral.ts";
import { counterCount, finalSeq, gapMs, gaugeCount, intervalMs, type Reading } from "./sample.ts";
import type { SampleBuffer } from "./sample-buffer.ts";

/** More gaps than this in one minute become one: what lies between them is not worth a line each. */
export const maxGaps = 60;

export type GapCause = "unknown" | "agent_down" | "read_error" | "clock";

export interface Gap {
  readonly fromMs: number;
  readonly toMs: number;
  readonly cause: GapCause;
  /** The counters on both sides prove the usage in between. */
  readonly bridged: boolean;
}

/** What is carried from one window of a series to its next. Absent values are NaN. */
export interface Carry {
  /** Closing counters of the window before, or the baseline's. */
  readonly counters: readonly number[];
  /** The last value of each gauge that could be read, and when. */
  readonly gauges: readonly number[];
  readonly gaugesAtMs: readonly number[];
  /** The last reading of which anything could be read. */
  readonly lastSeq: number;
  readonly lastAtMs: number;
}

export interface WindowInput {
  readonly baselineAtMs: number;
  /** The part of the minute that the series lived; `toMs` exclusive. */
  readonly fromMs: number;
  readonly toMs: number;
  readonly carry: Carry;
  readonly samples: SampleBuffer | undefined;
  /** The first reading after the window, when there is one: it proves that the series lived on. */
  readonly next: Reading | undefined;
  readonly final: boolean;
  /** True when the host sent any frame between two instants, both exclusive. */
  readonly hostWasHeard: (fromMs: number, toMs: number) => boolean;
}

export interface ClosedWindow {
  readonly fromMs: number;
  readonly toMs: number;
  readonly opening: readonly number[];
  readonly closing: readonly number[];
  readonly gauges: readonly GaugeIntegral[];
  readonly samplesExpected: number;
  readonly samplesSeen: number;
  readonly gaps: readonly Gap[];
  readonly final: boolean;
  readonly counterFault: boolean;
  readonly carry: Carry;
}

/** Folds one window. Pure: the same readings give the same result in whatever order they arrived. */
export function closeWindow(input: WindowInput): ClosedWindow {
  const { baselineAtMs, fromMs, toMs, carry, final } = input;
  const { closing, fault } = foldCounters(input);
  const folded = Array.from({ length: gaugeCount }, (_, gauge) => foldGauge(input, gauge));
  const { gaps, seen, lastSeq, lastAtMs } = foldPresence(input);
  return {
    fromMs,
    toMs,
    opening: carry.counters,
    closing,
    gauges: folded.map(({ integral }) => integral),
    samplesExpected: ticksBefore(baselineAtMs, toMs) - ticksBefore(baselineAtMs, fromMs),
    samplesSeen: seen,
    gaps,
    final,
    counterFault: fault,
    carry: {
      counters: closing,
      gauges: folded.map(({ value }) => value),
      gaugesAtMs: folded.map(({ atMs }) => atMs),
      lastSeq,
      lastAtMs,
    },
  };
}

/**
 * Ticks that are due between the baseline and an instant, both exclusive. A host reads all its VMs at the whole tenths of a second
 * of its wall clock. Differences over adjoining windows add up.
 */
function ticksBefore(baselineAtMs: number, atMs: number): number {
  return Math.max(0, Math.ceil(atMs / intervalMs) - Math.floor(baselineAtMs / intervalMs) - 1);
}

function foldCounters({ carry, samples }: WindowInput): { closing: number[]; fault: boolean } {
  let fault = false;
  const closing = Array.from({ length: counterCount }, (_, counter) => {
    let last = carry.counters[counter] ?? Number.NaN;
    for (let i = 0; i < (samples?.length ?? 0); i++) {
      const value = samples?.value(i, counter) ?? Number.NaN;
      if (Number.isNaN(value)) continue;
      if (value < last) fault = true;
      last = value;
    }
    return last;
  });
  return { closing, fault };
}

/**
 * A gauge holds its value until the next reading. Across a gap it counts with the lower of both ends, and where an end is
 * unknown it counts nothing: what is not proven is not billed.
 */
function foldGauge(
  { fromMs, toMs, carry, samples, next }: WindowInput,
  gauge: number,
): { integral: GaugeIntegral; value: number; atMs: number } {
  const column = counterCount + gauge;
  const integral = new GaugeIntegral();
  let value = carry.gauges[gauge] ?? Number.NaN;
  let atMs = carry.gaugesAtMs[gauge] ?? Number.NaN;
  let cursorMs = fromMs;
  let heldMs = 0; // time for which `value` holds and that is not yet added: runs of equal values need one product
  const settle = () => {
    if (heldMs > 0 && !Number.isNaN(value)) integral.add(value, heldMs);
    heldMs = 0;
  };
  const advance = (readAtMs: number, read: number) => {
    const untilMs = Math.min(Math.max(readAtMs, cursorMs), toMs);
    if (readAtMs - atMs > gapMs) {
      settle();
      const lower = Math.min(value, read);
      if (untilMs > cursorMs && !Number.isNaN(lower)) integral.add(lower, untilMs - cursorMs);
    } else {
      heldMs += untilMs - cursorMs;
    }
    cursorMs = untilMs;
  };
  for (let i = 0; i < (samples?.length ?? 0); i++) {
    const read = samples?.value(i, column) ?? Number.NaN;
    if (Number.isNaN(read)) continue;
    const readAtMs = samples?.atMs(i) ?? toMs;
    advance(readAtMs, read);
    if (read !== value) settle();
    value = read;
    atMs = readAtMs;
    integral.see(read);
  }
  if (cursorMs < toMs) {
    const read = next?.values[column] ?? Number.NaN;
    if (next !== undefined && !Number.isNaN(read)) advance(next.atMs, read);
    else if (toMs - atMs <= gapMs) heldMs += toMs - cursorMs;
  }
  settle();
  return { integral, value, atMs };
}

/** Counts samples and finds the stretches without. */
function foldPresence(input: WindowInput): { gaps: readonly Gap[]; seen: number; lastSeq: number; lastAtMs: number } {
  const { fromMs, toMs, carry, samples, next, final } = input;
  const gaps: Gap[] = [];
  let seen = 0;
  let { lastSeq, lastAtMs } = carry;
  let unreadable = false;
  const stretch = (atMs: number, seq: number | undefined) => {
    if (atMs - lastAtMs <= gapMs) return;
    const from = Math.max(lastAtMs, fromMs);
    const to = Math.min(atMs, toMs);
    if (to <= from) return;
    const cause = causeOf(input, { fromMs: lastAtMs, toMs: atMs, unreadable, adjacent: seq === lastSeq + 1 });
    gaps.push({ fromMs: from, toMs: to, cause, bridged: seq !== undefined });
  };
  for (let i = 0; i < (samples?.length ?? 0); i++) {
    if (samples === undefined) break;
    if (!samples.isReadable(i)) {
      unreadable = true;
      continue;
    }
    const seq = samples.seq(i);
    const atMs = samples.atMs(i);
    stretch(atMs, seq);
    if (seq !== finalSeq) seen += 1;
    lastSeq = seq;
    lastAtMs = Math.max(lastAtMs, atMs);
    unreadable = false;
  }
  if (next !== undefined) stretch(next.atMs, next.seq);
  else if (!final) stretch(toMs, undefined);
  return { gaps: boundGaps(gaps), seen, lastSeq, lastAtMs };
}

function boundGaps(gaps: readonly Gap[]): readonly Gap[] {
  if (gaps.length <= maxGaps) return gaps;
  const rest = gaps.slice(maxGaps - 1);
  const [first, last] = [rest[0], rest.at(-1)];
  if (first === undefined || last === undefined) return gaps;
  const bridged = rest.every((gap) => gap.bridged);
  return [...gaps.slice(0, maxGaps - 1), { fromMs: first.fromMs, toMs: last.toMs, cause: "unknown", bridged }];
}

function causeOf(
  { hostWasHeard }: WindowInput,
  gap: { fromMs: number; toMs: number; unreadable: boolean; adjacent: boolean },
): GapCause {
  if (gap.unreadable) return "read_error";
  if (gap.adjacent) return "clock";
  return hostWasHeard(gap.fromMs, gap.toMs) ? "unknown" : "agent_down";
}
