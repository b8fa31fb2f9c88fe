import { createHash } from "node:crypto";
import { constants, zstdDecompressSync } from "node:zlib";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  type Counters as CountersMessage,
  type GaugeIntegral,
  type UsageWindow as UsageWindowMessage,
  UsageWindowSchema,
  type WindowBatch,
  WindowBatchSchema,
} from "@unkey/api/metering";
import { type Counters, counterNames, type Integral, type UsageWindow } from "./usage-window.ts";

/** A batch as it travels and as it is kept. */
export interface BatchEnvelope {
  readonly batchId: string;
  readonly zstd: Uint8Array;
  /** Length and sha256 of the serialized batch before compression. */
  readonly bytes: number;
  readonly sha256: Uint8Array;
}

export interface OpenBatch {
  readonly batchId: string;
  readonly hostId: string;
  readonly logEpoch: bigint;
  readonly minuteAtMs: number;
  readonly windows: readonly UsageWindow[];
}

export type OpenedBatch =
  | { readonly kind: "batch"; readonly batch: OpenBatch }
  /** The envelope and its content disagree, as after damage on the way: sent again it may be whole. */
  | { readonly kind: "damaged"; readonly why: string }
  /** This is what was sent, and no repetition will make it right. */
  | { readonly kind: "invalid"; readonly why: string };

/** What one batch may hold before compression; a host-minute of 2,000 VMs is about 1 MiB. */
export const maxBatchBytes = 16 * 1024 * 1024;
export const maxBatchWindows = 10_000;
/** Base-2 logarithm of the history that a zstd frame may ask the decoder to keep. */
const maxZstdWindowLog = 24;

/** Decompresses, checks and parses an envelope; nothing in it is trusted, neither its lengths nor its names. */
export function openBatch(envelope: BatchEnvelope): OpenedBatch {
  const { bytes } = envelope;
  if (bytes > maxBatchBytes) return { kind: "invalid", why: `it claims ${bytes} bytes; ${maxBatchBytes} are allowed` };
  let message: Uint8Array;
  try {
    message = zstdDecompressSync(envelope.zstd, {
      maxOutputLength: Math.max(1, bytes), // what it claims and not a byte more is ever allocated
      params: { [constants.ZSTD_d_windowLogMax]: maxZstdWindowLog },
    });
  } catch {
    return { kind: "damaged", why: "it cannot be decompressed into the length that it claims" };
  }
  if (message.length !== bytes) return { kind: "damaged", why: `it holds ${message.length} bytes and claims ${bytes}` };
  if (!createHash("sha256").update(message).digest().equals(envelope.sha256)) {
    return { kind: "damaged", why: "its content does not have the sha256 that it claims" };
  }
  let batch: WindowBatch;
  try {
    batch = fromBinary(WindowBatchSchema, message);
  } catch {
    return { kind: "invalid", why: "it is not a WindowBatch" };
  }
  if (batch.batchId !== envelope.batchId) return { kind: "invalid", why: "it was sent under another batch_id" };
  if (batchIdOf(batch) !== batch.batchId) {
    return { kind: "invalid", why: "its batch_id does not follow from host, epoch, minute and sequence" };
  }
  const { batchId, hostId, logEpoch, minuteAtMs, windows } = batch;
  if (windows.length > maxBatchWindows) {
    return { kind: "invalid", why: `it has ${windows.length} windows; ${maxBatchWindows} are allowed` };
  }
  const read = windows.map((window) => readWindow(window, logEpoch));
  const whole = read.filter((window) => window !== undefined);
  if (whole.length < read.length) return { kind: "invalid", why: "a window lacks a part that the schema requires" };
  return { kind: "batch", batch: { batchId, hostId, logEpoch, minuteAtMs: Number(minuteAtMs), windows: whole } };
}

/** The name of a batch: see unkey.metering.v1.WindowBatch. */
export function batchIdOf(batch: Pick<WindowBatch, "hostId" | "logEpoch" | "minuteAtMs" | "batchSeq">): string {
  const { hostId, logEpoch, minuteAtMs, batchSeq } = batch;
  return createHash("sha256").update(`${hostId}\n${logEpoch}\n${minuteAtMs}\n${batchSeq}`).digest("hex");
}

function readWindow(message: UsageWindowMessage, logEpoch: bigint): UsageWindow | undefined {
  const { series, opening, closing } = message;
  if (series === undefined || opening === undefined || closing === undefined) return undefined;
  const integrals = [message.memoryAllocated, message.memoryResident, message.diskAllocated].map(readIntegral);
  if (integrals.includes("malformed")) return undefined;
  const [memoryAllocated, memoryResident, diskAllocated] = integrals as (Integral | undefined)[];
  const record = toBinary(UsageWindowSchema, message);
  return {
    hostId: series.hostId,
    vmId: series.vmId,
    incarnation: series.incarnation,
    tenantId: series.tenantId,
    appId: series.appId,
    deploymentId: series.deploymentId,
    startMs: Number(message.windowStartMs),
    coveredFromMs: Number(message.coveredFromMs),
    coveredToMs: Number(message.coveredToMs),
    logEpoch,
    revision: message.revision,
    opening: readCounters(opening),
    closing: readCounters(closing),
    memoryAllocated,
    memoryResident,
    diskAllocated,
    samplesExpected: message.samplesExpected,
    samplesSeen: message.samplesSeen,
    gaps: message.gaps.map((gap) => ({
      fromMs: Number(gap.fromMs),
      toMs: Number(gap.toMs),
      cause: gap.cause,
      countersBridged: gap.countersBridged,
    })),
    final: message.final,
    counterFault: message.counterFault,
    previousHash: Buffer.from(message.previousHash).toString("hex"),
    hash: createHash("sha256").update(record).digest("hex"),
    record,
  };
}

function readCounters(message: CountersMessage): Counters {
  const counters: { -readonly [K in keyof Counters]: bigint } = {};
  for (const name of counterNames) {
    const value = message[name];
    if (value !== undefined) counters[name] = value;
  }
  return counters;
}

function readIntegral(message: GaugeIntegral | undefined): Integral | "malformed" | undefined {
  if (message === undefined) return undefined;
  if (!/^[0-9]{1,38}$/.test(message.byteMs)) return "malformed";
  return { byteMs: BigInt(message.byteMs), minBytes: message.minBytes, maxBytes: message.maxBytes };
}
