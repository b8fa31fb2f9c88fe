import { createHash } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import {
  type Counters,
  CountersSchema,
  GapCause,
  GapSchema,
  type GaugeIntegral as GaugeIntegralMessage,
  GaugeIntegralSchema,
  type Sample,
  type Series,
  SeriesSchema,
  type UsageWindow,
  UsageWindowSchema,
  type WindowBatch,
  WindowBatchSchema,
} from "@unkey/api/metering";
import type { GapCause as Cause } from "./close-window.ts";
import type { GaugeIntegral } from "./gauge-integral.ts";
import { counterNames, gaugeNames, type Reading } from "./sample.ts";
import type { SeriesIdentity, SeriesWindow } from "./series.ts";

// Between the messages on the wire and the numbers of the fold. A window's bytes are its identity: same window, same bytes.

const causes: Readonly<Record<Cause, GapCause>> = {
  unknown: GapCause.UNSPECIFIED,
  agent_down: GapCause.AGENT_DOWN,
  read_error: GapCause.READ_ERROR,
  clock: GapCause.CLOCK,
};

export function toWindowMessage(
  identity: SeriesIdentity,
  window: SeriesWindow,
  previousHash: string,
): { message: UsageWindow; hash: string } {
  const [memoryAllocated, memoryResident, diskAllocated] = window.gauges.map(toIntegralMessage);
  const message = create(UsageWindowSchema, {
    series: create(SeriesSchema, identity),
    windowStartMs: BigInt(window.startMs),
    coveredFromMs: BigInt(window.fromMs),
    coveredToMs: BigInt(window.toMs),
    opening: toCountersMessage(window.opening),
    closing: toCountersMessage(window.closing),
    ...(memoryAllocated ? { memoryAllocated } : {}),
    ...(memoryResident ? { memoryResident } : {}),
    ...(diskAllocated ? { diskAllocated } : {}),
    samplesExpected: window.samplesExpected,
    samplesSeen: window.samplesSeen,
    gaps: window.gaps.map((gap) =>
      create(GapSchema, {
        fromMs: BigInt(gap.fromMs),
        toMs: BigInt(gap.toMs),
        cause: causes[gap.cause],
        countersBridged: gap.bridged,
      }),
    ),
    final: window.final,
    previousHash: Buffer.from(previousHash, "hex"),
    counterFault: window.counterFault,
  });
  return { message, hash: createHash("sha256").update(toBinary(UsageWindowSchema, message)).digest("hex") };
}

export function toBatch(batch: {
  readonly hostId: string;
  readonly logEpoch: bigint;
  readonly minuteAtMs: number;
  readonly seq: number;
  readonly windows: readonly UsageWindow[];
}): WindowBatch {
  const { hostId, logEpoch, minuteAtMs, seq } = batch;
  return create(WindowBatchSchema, {
    batchId: createHash("sha256").update(`${hostId}\n${logEpoch}\n${minuteAtMs}\n${seq}`).digest("hex"),
    hostId,
    logEpoch,
    minuteAtMs: BigInt(minuteAtMs),
    batchSeq: BigInt(seq),
    windows: [...batch.windows],
  });
}

export function fromSeriesMessage(series: Series): SeriesIdentity {
  const { hostId, vmId, incarnation, tenantId, appId, deploymentId } = series;
  return { hostId, vmId, incarnation, tenantId, appId, deploymentId };
}

/** Values that do not fit a double exactly count as unreadable, like absent ones. */
export function fromSampleMessage(sample: Sample): Reading {
  const { counters, gauges } = sample;
  return {
    seq: Number(sample.seq),
    atMs: Number(sample.atMs),
    values: [
      ...counterNames.map((name) => toExactNumber(counters?.[name])),
      ...gaugeNames.map((name) => toExactNumber(gauges?.[name])),
    ],
  };
}

function toExactNumber(value: bigint | undefined): number {
  return value === undefined || value > BigInt(Number.MAX_SAFE_INTEGER) ? Number.NaN : Number(value);
}

function toCountersMessage(values: readonly number[]): Counters {
  const message = create(CountersSchema);
  counterNames.forEach((name, index) => {
    const value = values[index] ?? Number.NaN;
    if (!Number.isNaN(value)) message[name] = BigInt(value);
  });
  return message;
}

function toIntegralMessage(integral: GaugeIntegral): GaugeIntegralMessage {
  return create(GaugeIntegralSchema, {
    byteMs: integral.byteMs.toString(),
    minBytes: BigInt(integral.minBytes),
    maxBytes: BigInt(integral.maxBytes),
  });
}
