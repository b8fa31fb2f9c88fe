import { createHash } from "node:crypto";
import { zstdCompressSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import {
  CountersSchema,
  GapSchema,
  GaugeIntegralSchema,
  type Series,
  SeriesSchema,
  type UsageWindow,
  UsageWindowSchema,
  WindowBatchSchema,
} from "@unkey/api/metering";
import { newId } from "@unkey/base";
import { type BatchEnvelope, batchIdOf } from "../domain/open-batch.ts";

export const minuteMs = 60_000;
export const gibBytes = 2n ** 30n;

/** What a VM did in one minute. */
export interface Minute {
  readonly cpuTimeUs?: bigint;
  readonly diskReadBytes?: bigint;
  readonly diskWriteBytes?: bigint;
  readonly netInBytes?: bigint;
  readonly netOutBytes?: bigint;
  readonly memoryBytes?: bigint;
  readonly residentBytes?: bigint;
  readonly diskBytes?: bigint;
  readonly samplesMissing?: number;
  readonly gap?: { readonly fromMs: number; readonly toMs: number } | undefined;
  readonly counterFault?: boolean;
}

export function testSeries(fields: Partial<Series> = {}): Series {
  return create(SeriesSchema, {
    hostId: newId("host"),
    vmId: newId("vm"),
    incarnation: 1,
    tenantId: newId("tenant"),
    appId: newId("app"),
    deploymentId: newId("dep"),
    ...fields,
  });
}

export function hashOf(window: UsageWindow): Uint8Array {
  return createHash("sha256").update(toBinary(UsageWindowSchema, window)).digest();
}

/**
 * The windows that a meter would close for a series: chained by hash, telescoping, the last one final unless `running`.
 * It lives from `fromMs` to `toMs`, whatever they are aligned to.
 */
export function testWindows(
  series: Series,
  life: { readonly fromMs: number; readonly toMs: number; readonly running?: boolean },
  minutes: readonly Minute[] = [],
): UsageWindow[] {
  const windows: UsageWindow[] = [];
  const counters = { cpuTimeUs: 0n, diskReadBytes: 0n, diskWriteBytes: 0n, netInBytes: 0n, netOutBytes: 0n };
  let previous: UsageWindow | undefined;
  for (let startMs = floorMinute(life.fromMs); startMs < life.toMs; startMs += minuteMs) {
    const minute = minutes[windows.length] ?? {};
    const coveredFromMs = Math.max(startMs, life.fromMs);
    const coveredToMs = Math.min(startMs + minuteMs, life.toMs);
    const coveredMs = coveredToMs - coveredFromMs;
    const opening = create(CountersSchema, { ...counters });
    if (minute.counterFault) for (const name of names) counters[name] /= 2n;
    for (const name of names) counters[name] += minute[name] ?? 0n;
    const samplesExpected = Math.floor(coveredMs / 100);
    const held = (bytes: bigint) =>
      create(GaugeIntegralSchema, {
        byteMs: `${bytes * BigInt(coveredMs)}`,
        minBytes: bytes,
        maxBytes: bytes,
      });
    const window: UsageWindow = create(UsageWindowSchema, {
      series,
      windowStartMs: BigInt(startMs),
      coveredFromMs: BigInt(coveredFromMs),
      coveredToMs: BigInt(coveredToMs),
      opening,
      closing: create(CountersSchema, { ...counters }),
      memoryAllocated: held(minute.memoryBytes ?? 0n),
      memoryResident: held(minute.residentBytes ?? 0n),
      diskAllocated: held(minute.diskBytes ?? 0n),
      samplesExpected,
      samplesSeen: Math.max(0, samplesExpected - (minute.samplesMissing ?? 0)),
      gaps:
        minute.gap === undefined
          ? []
          : [
              create(GapSchema, {
                fromMs: BigInt(coveredFromMs + Math.min(minute.gap.fromMs, coveredMs)),
                toMs: BigInt(coveredFromMs + Math.min(minute.gap.toMs, coveredMs)),
                countersBridged: true,
              }),
            ],
      final: life.running !== true && startMs + minuteMs >= life.toMs,
      previousHash: previous === undefined ? new Uint8Array() : hashOf(previous),
      counterFault: minute.counterFault ?? false,
    });
    windows.push(window);
    previous = window;
  }
  return windows;
}

const names = ["cpuTimeUs", "diskReadBytes", "diskWriteBytes", "netInBytes", "netOutBytes"] as const;

/** The window as late data changed it: other samples, the same counters. */
export function revised(window: UsageWindow, changes: Partial<UsageWindow> = {}): UsageWindow {
  return create(UsageWindowSchema, {
    ...window,
    revision: window.revision + 1,
    samplesSeen: window.samplesExpected,
    gaps: [],
    ...changes,
  });
}

export interface BatchFields {
  readonly hostId: string;
  readonly minuteAtMs: number;
  readonly batchSeq: number;
  readonly logEpoch?: number;
  readonly windows: readonly UsageWindow[];
}

export function testBatch(fields: BatchFields): BatchEnvelope {
  const { hostId, windows } = fields;
  const named = {
    hostId,
    logEpoch: BigInt(fields.logEpoch ?? 1),
    minuteAtMs: BigInt(fields.minuteAtMs),
    batchSeq: BigInt(fields.batchSeq),
  };
  const batchId = batchIdOf(named);
  return envelopeOf(
    batchId,
    toBinary(WindowBatchSchema, create(WindowBatchSchema, { ...named, batchId, windows: [...windows] })),
  );
}

export function envelopeOf(batchId: string, message: Uint8Array): BatchEnvelope {
  return {
    batchId,
    zstd: zstdCompressSync(message),
    bytes: message.length,
    sha256: createHash("sha256").update(message).digest(),
  };
}

/** One batch a minute, as a host sends them. */
export function batchesByMinute(hostId: string, windows: readonly UsageWindow[], logEpoch = 1): BatchEnvelope[] {
  const byMinute = [...Map.groupBy(windows, ({ windowStartMs }) => Number(windowStartMs))].toSorted(
    ([a], [b]) => a - b,
  );
  return byMinute.map(([minuteAtMs, ofMinute], index) =>
    testBatch({ hostId, minuteAtMs, batchSeq: index + 1, logEpoch, windows: ofMinute }),
  );
}

function floorMinute(atMs: number): number {
  return Math.floor(atMs / minuteMs) * minuteMs;
}
