import { maxAgeDays, windowMs } from "./usage-window.ts";

const hourMs = 3_600_000;
const dayMs = 86_400_000;

/** How long each table keeps what it holds, in days; what is older is there in the next coarser one only. */
export const rollupRetentionDays = { "1m": 30, "5m": 90, "1h": 400, "1d": 1826 } as const;
export type Resolution = keyof typeof rollupRetentionDays;
export const resolutionMs: Readonly<Record<Resolution, number>> = {
  "1m": windowMs,
  "5m": 5 * windowMs,
  "1h": hourMs,
  "1d": dayMs,
};

/** A stretch of time and where its usage is read from. */
export interface Segment {
  readonly source: "window" | "1h" | "1d";
  readonly fromMs: number;
  readonly toMs: number;
}

export interface Period {
  readonly fromMs: number;
  readonly toMs: number;
}

/** First instant of the month of `atMs` in UTC. */
export function monthStartMs(atMs: number): number {
  const at = new Date(atMs);
  return Date.UTC(at.getUTCFullYear(), at.getUTCMonth());
}

/**
 * The period that can be answered for: the one asked for, widened to whole minutes; to whole hours where it reaches back
 * beyond the windows, to whole UTC days beyond the hours.
 */
export function widenPeriod(asked: Period, nowMs: number): Period {
  const from = grainMs(asked.fromMs, nowMs);
  const to = grainMs(asked.toMs, nowMs);
  return { fromMs: floorTo(asked.fromMs, from), toMs: ceilTo(asked.toMs, to) };
}

/** Tiles a widened period with the longest stretches that the tables hold. */
export function segmentsOf({ fromMs, toMs }: Period): Segment[] {
  const cut = (source: Segment["source"], from: number, to: number): Segment[] =>
    from < to ? [{ source, fromMs: from, toMs: to }] : [];
  const hours = (from: number, to: number): Segment[] => {
    const [first, last] = [ceilTo(from, hourMs), floorTo(to, hourMs)];
    if (first >= last) return cut("window", from, to);
    return [...cut("window", from, first), ...cut("1h", first, last), ...cut("window", last, to)];
  };
  const [first, last] = [ceilTo(fromMs, dayMs), floorTo(toMs, dayMs)];
  if (first >= last) return hours(fromMs, toMs);
  return [...hours(fromMs, first), ...cut("1d", first, last), ...hours(last, toMs)];
}

/** A day less than is kept, because the engine may drop early on the last one. */
function grainMs(atMs: number, nowMs: number): number {
  const ageDays = (nowMs - atMs) / dayMs;
  if (ageDays > rollupRetentionDays["1h"] - 1) return dayMs;
  return ageDays > maxAgeDays ? hourMs : windowMs;
}

function floorTo(atMs: number, grain: number): number {
  return Math.floor(atMs / grain) * grain;
}

function ceilTo(atMs: number, grain: number): number {
  return Math.ceil(atMs / grain) * grain;
}
