import { addQuantities, type Quantities } from "./meters.ts";
import { windowStartOf } from "./usage-window.ts";

/**
 * Usage of one series over a stretch of time under one price book, together with its two ends, by which it can be told
 * whether another stretch continues it. A window is a stretch of a minute; stretches fold into longer ones.
 */
export interface UsageUnit {
  readonly appId: string;
  readonly vmId: string;
  readonly incarnation: number;
  readonly hostId: string;
  readonly priceBookId: string;
  readonly priceBookHash: string;
  readonly coveredFromMs: number;
  readonly coveredToMs: number;
  readonly quantities: Quantities;
  readonly samplesExpected: bigint;
  readonly samplesSeen: bigint;
  readonly windows: bigint;
  /** Neighbouring windows inside it of which the second does not continue the first. */
  readonly brokenLinks: bigint;
  /** Of its first window. */
  readonly opening: string;
  readonly previousHash: string;
  /** Of its last window. */
  readonly closing: string;
  readonly hash: string;
  readonly revision: number;
  readonly final: boolean;
}

/**
 * True when `next` begins exactly where `unit` ends: in time, in its counters, and by the hash that it names. A window
 * that was revised is continued without the last: its successor names the revision that it replaced. The store folds
 * windows by the same rule (see clickhouse-fold.ts).
 */
export function continues(unit: UsageUnit, next: UsageUnit): boolean {
  return (
    next.coveredFromMs === unit.coveredToMs &&
    next.opening === unit.closing &&
    (next.previousHash === unit.hash || unit.revision > 0)
  );
}

/** What one incarnation used, by price book, and whether nothing of it is missing. */
export interface SeriesUsage {
  readonly byBook: ReadonlyMap<string, Quantities>;
  readonly samplesExpected: bigint;
  readonly samplesSeen: bigint;
  readonly coveredFromMs: number;
  readonly coveredToMs: number;
  /** From its first window (or the one at `fromMs`) to its last, without a link missing. */
  readonly complete: boolean;
}

/** Folds the stretches of one series, in any order. `fromMs` is where the question begins: a chain may reach back further. */
export function foldSeries(units: readonly UsageUnit[], fromMs: number): SeriesUsage {
  const ordered = units.toSorted((a, b) => a.coveredFromMs - b.coveredFromMs || a.coveredToMs - b.coveredToMs);
  const byBook = new Map<string, Quantities>();
  let [samplesExpected, samplesSeen, brokenLinks] = [0n, 0n, 0n];
  let previous: UsageUnit | undefined;
  for (const unit of ordered) {
    const known = byBook.get(unit.priceBookId);
    byBook.set(unit.priceBookId, known === undefined ? unit.quantities : addQuantities(known, unit.quantities));
    samplesExpected += unit.samplesExpected;
    samplesSeen += unit.samplesSeen;
    brokenLinks += unit.brokenLinks;
    if (previous !== undefined && !continues(previous, unit)) brokenLinks += 1n;
    previous = unit;
  }
  const first = ordered[0];
  const beginsWhole =
    first !== undefined && (first.previousHash === "" || windowStartOf(first.coveredFromMs) === fromMs);
  return {
    byBook,
    samplesExpected,
    samplesSeen,
    coveredFromMs: first?.coveredFromMs ?? 0,
    coveredToMs: previous?.coveredToMs ?? 0,
    complete: beginsWhole && brokenLinks === 0n && previous?.final === true,
  };
}
