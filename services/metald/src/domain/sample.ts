import type { TenantId, VmId } from "@unkey/base";

/** One reading of one series; NaN where a source could not be read. Whole numbers below 2^53. */
export interface Sample {
  readonly seq: number;
  readonly atMs: number;
  readonly cpuTimeUs: number;
  readonly diskReadBytes: number;
  readonly diskWriteBytes: number;
  readonly netInBytes: number;
  readonly netOutBytes: number;
  readonly memoryAllocatedBytes: number;
  readonly memoryResidentBytes: number;
  readonly diskAllocatedBytes: number;
}

/** Who pays for an incarnation of a VM. */
export interface SeriesKey {
  readonly tenantId: TenantId;
  readonly vmId: VmId;
  readonly incarnation: number;
  readonly appId: string;
  readonly deploymentId: string;
}

/** An incarnation with the samples at its two ends. */
export interface Series extends SeriesKey {
  readonly baseline: Sample;
  readonly final: Sample | undefined;
  /** billaged has taken the baseline. */
  readonly startConfirmed: boolean;
}

export const tickMs = 100;

/**
 * The number of the tick that `atMs` falls into, counted from the baseline, which has number 0. It follows from the clock
 * alone, so a metald that starts again goes on where it should, and ticks that it missed are missing.
 */
export function seqAt(baseline: Sample, atMs: number, previousSeq: number): number {
  return Math.max(previousSeq + 1, Math.round((atMs - baseline.atMs) / tickMs));
}
