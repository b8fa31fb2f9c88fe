import { ServiceError } from "@unkey/base";
import { addQuantities, type MeterName, meters, noUsage, type Quantities } from "./meters.ts";
import type { Period } from "./period.ts";
import { bookAt, type PriceBook, unitPriceOf } from "./price-book.ts";
import { rate } from "./rate.ts";
import { foldSeries, type SeriesUsage, type UsageUnit } from "./usage-unit.ts";
import { type SeriesKey, seriesName, type WindowGap } from "./usage-window.ts";

/** A gap of a window of the series. */
export interface SeriesGap extends SeriesKey, WindowGap {}

export interface PricedMeter {
  readonly meter: MeterName;
  readonly quantity: bigint;
  readonly unit: string;
  /** In units of 10^-exponent of the report's currency. */
  readonly amount: bigint;
}

/** Usage of a VM, or of an app: then `vmId` is empty and every figure is the sum of the app's VMs. */
export interface UsageLine {
  readonly appId: string;
  readonly vmId: string;
  readonly quantities: Quantities;
  readonly meters: readonly PricedMeter[];
  readonly amount: bigint;
  readonly samplesExpected: bigint;
  readonly samplesSeen: bigint;
  readonly gaps: readonly WindowGap[];
  readonly coveredFromMs: number;
  readonly coveredToMs: number;
  readonly complete: boolean;
}

export interface UsageReport {
  readonly period: Period;
  readonly apps: readonly UsageLine[];
  readonly vms: readonly UsageLine[];
  readonly total: bigint;
  readonly currency: string;
  readonly exponent: number;
  /** The book of the latest usage, or in force at the end when there is none; earlier usage has the price of its time. */
  readonly book: PriceBook;
}

/**
 * Prices what was used. An amount is rounded once, per VM and meter; apps and the total are sums of those, so that what is
 * shown adds up. Usage under several books is rated part by part and rounded together. Throws USAGE_SPANS_CURRENCIES.
 */
export function reportUsage(input: {
  readonly period: Period;
  readonly units: readonly UsageUnit[];
  readonly gaps: readonly SeriesGap[];
  readonly books: readonly PriceBook[];
}): UsageReport {
  const { period, units } = input;
  const used = new Map<string, PriceBook>();
  for (const unit of units) used.set(unit.priceBookId, bookOf(unit, input.books));
  const latest = [...used.values()].toSorted((a, b) => b.effectiveFromMs - a.effectiveFromMs)[0];
  const book = latest ?? requireBook(bookAt(input.books, Math.max(period.fromMs, period.toMs - 1)));
  const other = [...used.values()].find(({ currency }) => currency !== book.currency);
  if (other !== undefined) {
    throw new ServiceError(
      "USAGE_SPANS_CURRENCIES",
      `the period has usage priced in ${other.currency} and in ${book.currency}, which begins at ${book.effectiveFromMs}`,
    );
  }
  const exponent = Math.max(book.exponent, ...[...used.values()].map((candidate) => candidate.exponent));
  const gaps = Map.groupBy(input.gaps, seriesName);
  const vms = [...Map.groupBy(units, ({ appId, vmId }) => `${appId} ${vmId}`).values()]
    .map((ofVm) => vmLine(ofVm, { period, used, exponent, gaps }))
    .toSorted((a, b) => compare(a.appId, b.appId) || compare(a.vmId, b.vmId));
  const apps = [...Map.groupBy(vms, ({ appId }) => appId).values()].map(appLine);
  const total = apps.reduce((sum, { amount }) => sum + amount, 0n);
  return { period, apps, vms, total, currency: book.currency, exponent, book };
}

function bookOf(unit: UsageUnit, books: readonly PriceBook[]): PriceBook {
  const book = books.find(({ id }) => id === unit.priceBookId);
  if (book?.hash === unit.priceBookHash) return book;
  throw new ServiceError("DATA_LOSS", "a price book that usage was priced by is missing or changed", {
    metadata: { priceBookId: unit.priceBookId },
  });
}

function requireBook(book: PriceBook | undefined): PriceBook {
  if (book === undefined) throw new Error("no price book is in force");
  return book;
}

function vmLine(
  units: readonly UsageUnit[],
  context: {
    readonly period: Period;
    readonly used: ReadonlyMap<string, PriceBook>;
    readonly exponent: number;
    readonly gaps: ReadonlyMap<string, readonly SeriesGap[]>;
  },
): UsageLine {
  const { period, used, exponent, gaps } = context;
  const bySeries = Map.groupBy(units, seriesName);
  const series = [...bySeries.values()].map((ofSeries) => foldSeries(ofSeries, period.fromMs));
  const byBook = new Map<PriceBook, Quantities>();
  for (const usage of series) {
    for (const [bookId, quantities] of usage.byBook) {
      const book = requireBook(used.get(bookId));
      byBook.set(book, addQuantities(byBook.get(book) ?? noUsage, quantities));
    }
  }
  const priced = meters.map(({ name, unit, quantity }): PricedMeter => {
    const parts = [...byBook].map(([book, quantities]) => ({
      quantity: quantities[quantity],
      price: unitPriceOf(book, name),
    }));
    const sum = parts.reduce((total, part) => total + part.quantity, 0n);
    return { meter: name, quantity: sum, unit, amount: rate(parts, exponent) };
  });
  return {
    ...sumOf(series),
    appId: units[0]?.appId ?? "",
    vmId: units[0]?.vmId ?? "",
    quantities: [...byBook.values()].reduce(addQuantities, noUsage),
    meters: priced,
    amount: priced.reduce((sum, { amount }) => sum + amount, 0n),
    gaps: [...bySeries.keys()].flatMap((name) => joinGaps(gaps.get(name) ?? [])),
  };
}

function appLine(vms: readonly UsageLine[]): UsageLine {
  return {
    ...sumOf(vms),
    appId: vms[0]?.appId ?? "",
    vmId: "",
    quantities: vms.map((vm) => vm.quantities).reduce(addQuantities, noUsage),
    meters: meters.map(({ name, unit }, index) => ({
      meter: name,
      unit,
      quantity: vms.reduce((sum, vm) => sum + (vm.meters[index]?.quantity ?? 0n), 0n),
      amount: vms.reduce((sum, vm) => sum + (vm.meters[index]?.amount ?? 0n), 0n),
    })),
    amount: vms.reduce((sum, vm) => sum + vm.amount, 0n),
    gaps: vms.flatMap((vm) => vm.gaps),
  };
}

type Covered = Pick<SeriesUsage, "samplesExpected" | "samplesSeen" | "coveredFromMs" | "coveredToMs" | "complete">;

function sumOf(parts: readonly Covered[]): Covered {
  return {
    samplesExpected: parts.reduce((sum, part) => sum + part.samplesExpected, 0n),
    samplesSeen: parts.reduce((sum, part) => sum + part.samplesSeen, 0n),
    coveredFromMs: Math.min(...parts.map((part) => part.coveredFromMs)),
    coveredToMs: Math.max(...parts.map((part) => part.coveredToMs)),
    complete: parts.every((part) => part.complete),
  };
}

/** Windows cut a gap at each minute: pieces that touch become one again. */
function joinGaps(gaps: readonly SeriesGap[]): WindowGap[] {
  const joined: WindowGap[] = [];
  for (const { fromMs, toMs, cause, countersBridged } of gaps.toSorted((a, b) => a.fromMs - b.fromMs)) {
    const last = joined.at(-1);
    const touches = last?.toMs === fromMs && last.cause === cause && last.countersBridged === countersBridged;
    if (touches) joined[joined.length - 1] = { ...last, toMs };
    else joined.push({ fromMs, toMs, cause, countersBridged });
  }
  return joined;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
