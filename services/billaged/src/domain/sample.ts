/** Samples are due every so often. */
export const intervalMs = 100;
/** Windows are aligned minutes. */
export const windowMs = 60_000;
export const samplesPerWindow = windowMs / intervalMs;
/** Consecutive samples further apart than this have a gap between them. */
export const gapMs = 1_000;

/** The columns of a reading, counters first. All are whole numbers below 2^53; NaN stands for one that could not be read. */
export const counterNames = ["cpuTimeUs", "diskReadBytes", "diskWriteBytes", "netInBytes", "netOutBytes"] as const;
export const gaugeNames = ["memoryAllocatedBytes", "memoryResidentBytes", "diskAllocatedBytes"] as const;
export const counterCount = counterNames.length;
export const gaugeCount = gaugeNames.length;
export const valueCount = counterCount + gaugeCount;

/** One instant of one series: values in the order of `counterNames` and `gaugeNames`. */
export interface Reading {
  readonly seq: number;
  readonly atMs: number;
  readonly values: readonly number[];
}

/** The number of a final reading, which is taken after the last tick. */
export const finalSeq = Number.MAX_SAFE_INTEGER;

/** Start of the aligned minute that holds `atMs`. */
export function windowStartOf(atMs: number): number {
  return Math.floor(atMs / windowMs) * windowMs;
}
