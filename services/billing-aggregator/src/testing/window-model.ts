import type { UsageWindow as UsageWindowMessage } from "@unkey/api/metering";
import { addQuantities } from "../domain/meters.ts";
import { openBatch } from "../domain/open-batch.ts";
import { defaultPriceBook, type PriceBook } from "../domain/price-book.ts";
import { continues, type UsageUnit } from "../domain/usage-unit.ts";
import { canonicalCounters, quantitiesOf, type UsageWindow } from "../domain/usage-window.ts";
import { testBatch } from "./simulated-host.ts";

/** The windows as a receiver reads them. */
export function readWindows(messages: readonly UsageWindowMessage[], logEpoch = 1): UsageWindow[] {
  if (messages.length === 0) return [];
  const hostId = messages[0]?.series?.hostId ?? "";
  const opened = openBatch(testBatch({ hostId, minuteAtMs: 0, batchSeq: 1, logEpoch, windows: messages }));
  if (opened.kind !== "batch") throw new Error(opened.why);
  return [...opened.batch.windows];
}

/** A window as the shortest stretch. */
export function unitOf(window: UsageWindow, book: PriceBook = defaultPriceBook): UsageUnit {
  return {
    appId: window.appId,
    vmId: window.vmId,
    incarnation: window.incarnation,
    hostId: window.hostId,
    priceBookId: book.id,
    priceBookHash: book.hash,
    coveredFromMs: window.coveredFromMs,
    coveredToMs: window.coveredToMs,
    quantities: quantitiesOf(window),
    samplesExpected: BigInt(window.samplesExpected),
    samplesSeen: BigInt(window.samplesSeen),
    windows: 1n,
    brokenLinks: 0n,
    opening: canonicalCounters(window.opening),
    previousHash: window.previousHash,
    closing: canonicalCounters(window.closing),
    hash: window.hash,
    revision: window.revision,
    final: window.final,
  };
}

/** What the store's SQL does to stretches of one series that follow each other, in a few lines to compare it with. */
export function foldUnits(units: readonly UsageUnit[]): UsageUnit {
  return units.reduce((a, b) => ({
    ...a,
    coveredToMs: b.coveredToMs,
    quantities: addQuantities(a.quantities, b.quantities),
    samplesExpected: a.samplesExpected + b.samplesExpected,
    samplesSeen: a.samplesSeen + b.samplesSeen,
    windows: a.windows + b.windows,
    brokenLinks: a.brokenLinks + b.brokenLinks + (continues(a, b) ? 0n : 1n),
    closing: b.closing,
    hash: b.hash,
    revision: b.revision,
    final: b.final,
  }));
}
