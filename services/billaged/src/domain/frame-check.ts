import type { Sample, SampleFrame, Series } from "@unkey/api/metering";
import { ServiceError } from "@unkey/base";
import { columnsOf } from "./meter.ts";
import { windowMs } from "./sample.ts";

/** A clock may be ahead of ours by so much. */
export const maxAheadMs = 5 * windowMs;
/** What is older than this can no longer be billed. */
export const maxAgeMs = 95 * 24 * 60 * windowMs;
const maxIdLength = 128;

/** Throws INVALID_REQUEST, naming the field, when a frame cannot be folded. */
export function checkFrame(frame: SampleFrame, nowMs: number): void {
  const count = frame.vmIds.length;
  if (frame.hostId.length > maxIdLength) throw invalid("host_id is too long");
  if (frame.frameSeq > BigInt(Number.MAX_SAFE_INTEGER)) throw invalid("frame_seq is too large");
  checkInstant("at_ms", frame.atMs, nowMs);
  for (const vmId of frame.vmIds) {
    if (vmId === "" || vmId.length > maxIdLength) throw invalid("vm_ids holds an empty or overlong id");
  }
  const columns = [frame.incarnations, frame.seqs, ...columnsOf(frame)];
  if (columns.some((column) => column.length !== count)) throw invalid("its columns are not of equal length");
  if (!frame.seqs.every((seq) => Number.isSafeInteger(seq) && seq >= 1)) {
    throw invalid("seqs are whole numbers from 1");
  }
  for (const column of columnsOf(frame)) {
    for (const value of column) {
      if (!(Number.isSafeInteger(value) && value >= 0) && !Number.isNaN(value)) {
        throw invalid(`${value} is neither a whole number below 2^53 nor NaN`);
      }
    }
  }
}

/** Throws INVALID_REQUEST when a start or an end contradicts itself. */
export function checkLife(
  life: { readonly tenantId: string; readonly series: Series; readonly baseline: Sample; readonly final?: Sample },
  nowMs: number,
): void {
  const { series, baseline, final } = life;
  if (series.tenantId !== life.tenantId) throw invalid("tenant_id differs from series.tenant_id");
  for (const id of [series.hostId, series.vmId, series.tenantId, series.appId, series.deploymentId]) {
    if (id.length > maxIdLength) throw invalid("an id of the series is too long");
  }
  if (baseline.seq !== 0n) throw invalid("the baseline's seq is not 0");
  checkInstant("baseline.at_ms", baseline.atMs, nowMs);
  if (final === undefined) return;
  checkInstant("final.at_ms", final.atMs, nowMs);
  if (final.atMs < baseline.atMs) throw invalid("the final sample is older than the baseline");
}

function checkInstant(field: string, atMs: bigint, nowMs: number): void {
  if (atMs > BigInt(nowMs + maxAheadMs)) throw invalid(`${field} is more than 5 minutes ahead`);
  if (atMs < BigInt(nowMs - maxAgeMs)) throw invalid(`${field} is more than 95 days old`);
}

function invalid(what: string): ServiceError {
  return new ServiceError("INVALID_REQUEST", `the usage report cannot be taken: ${what}`);
}
