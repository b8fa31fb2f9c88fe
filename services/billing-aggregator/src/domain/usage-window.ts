import type { Quantities } from "./meters.ts";

/** Windows are aligned minutes. */
export const windowMs = 60_000;
/** Start of the aligned minute that holds `atMs`. */
export function windowStartOf(atMs: number): number {
  return Math.floor(atMs / windowMs) * windowMs;
}

/** A host's clock may be ahead of ours by so much. */
export const maxFutureMs = 5 * 60_000;
/** Windows are stored for so many days. */
export const windowRetentionDays = 95;
/** Older windows are not taken: an hour of which some windows have been dropped must not be rolled up anew. */
export const maxAgeDays = windowRetentionDays - 1;

/** Cumulative counters; a missing one could not be read. */
export interface Counters {
  readonly cpuTimeUs?: bigint;
  readonly diskReadBytes?: bigint;
  readonly diskWriteBytes?: bigint;
  readonly netInBytes?: bigint;
  readonly netOutBytes?: bigint;
}

export const counterNames = ["cpuTimeUs", "diskReadBytes", "diskWriteBytes", "netInBytes", "netOutBytes"] as const;

export interface Integral {
  readonly byteMs: bigint;
  readonly minBytes: bigint;
  readonly maxBytes: bigint;
}

export interface WindowGap {
  readonly fromMs: number;
  readonly toMs: number;
  /** unkey.metering.v1.GapCause. */
  readonly cause: number;
  readonly countersBridged: boolean;
}

/** One boot of one VM on one host. */
export interface SeriesKey {
  readonly hostId: string;
  readonly vmId: string;
  readonly incarnation: number;
}

/** What one series used in one aligned minute: see unkey.metering.v1.UsageWindow. */
export interface UsageWindow extends SeriesKey {
  readonly tenantId: string;
  readonly appId: string;
  readonly deploymentId: string;
  readonly startMs: number;
  readonly coveredFromMs: number;
  readonly coveredToMs: number;
  /** Epoch of the log that wrote it: a log that replaces a lost one has a higher epoch, and its windows win. */
  readonly logEpoch: bigint;
  readonly revision: number;
  readonly opening: Counters;
  readonly closing: Counters;
  readonly memoryAllocated: Integral | undefined;
  readonly memoryResident: Integral | undefined;
  readonly diskAllocated: Integral | undefined;
  readonly samplesExpected: number;
  readonly samplesSeen: number;
  readonly gaps: readonly WindowGap[];
  readonly final: boolean;
  readonly counterFault: boolean;
  /** sha256 of the window before, hex; empty for the first. */
  readonly previousHash: string;
  /** sha256 of `record`, hex. */
  readonly hash: string;
  /** The window as it was received, serialized. */
  readonly record: Uint8Array;
}

/** Series as one string, for maps. */
export function seriesName({ hostId, vmId, incarnation }: SeriesKey): string {
  return `${hostId} ${vmId} ${incarnation}`;
}

/** Orders the states of one window: what a newer log says wins, then the higher revision. */
export function versionOf({ logEpoch, revision }: Pick<UsageWindow, "logEpoch" | "revision">): bigint {
  return (logEpoch << 32n) | BigInt(revision);
}

/** Counters in one comparable text, `-` for one that is missing. */
export function canonicalCounters(counters: Counters): string {
  return counterNames.map((name) => counters[name] ?? "-").join(",");
}

/**
 * What the window says was used. A pair of counters of which one is missing, or that went backwards, proves nothing and
 * counts nothing: the pairs of later windows are unaffected by it.
 */
export function quantitiesOf(window: UsageWindow): Quantities {
  const used = (name: keyof Counters): bigint => {
    const opening = window.opening[name];
    const closing = window.closing[name];
    if (window.counterFault || opening === undefined || closing === undefined) return 0n;
    return closing - opening;
  };
  return {
    cpuTimeUs: used("cpuTimeUs"),
    memoryByteMs: window.memoryAllocated?.byteMs ?? 0n,
    memoryResidentByteMs: window.memoryResident?.byteMs ?? 0n,
    diskByteMs: window.diskAllocated?.byteMs ?? 0n,
    diskReadBytes: used("diskReadBytes"),
    diskWriteBytes: used("diskWriteBytes"),
    netInBytes: used("netInBytes"),
    netOutBytes: used("netOutBytes"),
  };
}
