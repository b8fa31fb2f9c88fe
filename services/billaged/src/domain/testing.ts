import { createHash } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import {
  CountersSchema,
  GaugesSchema,
  type Sample,
  type SampleFrame,
  SampleFrameSchema,
  SampleSchema,
  type Series,
  SeriesSchema,
  type UsageWindow,
  UsageWindowSchema,
  type WindowBatch,
} from "@unkey/api/metering";

/** What one VM reads at an instant, for tests: every counter and gauge. */
export interface TestValues {
  readonly cpu: number;
  readonly read: number;
  readonly write: number;
  readonly netIn: number;
  readonly netOut: number;
  readonly memory: number;
  readonly resident: number;
  readonly disk: number;
}

export const noValues: TestValues = { cpu: 0, read: 0, write: 0, netIn: 0, netOut: 0, memory: 0, resident: 0, disk: 0 };

export function testSeries(vmId: string, fields: Partial<Series> = {}): Series {
  return create(SeriesSchema, {
    hostId: "host_1",
    vmId,
    incarnation: 1,
    tenantId: "tenant_1",
    appId: "app_1",
    deploymentId: "dep_1",
    ...fields,
  });
}

export function testSample(seq: number, atMs: number, values: TestValues): Sample {
  return create(SampleSchema, {
    seq: BigInt(seq),
    atMs: BigInt(atMs),
    counters: create(CountersSchema, {
      cpuTimeUs: BigInt(values.cpu),
      diskReadBytes: BigInt(values.read),
      diskWriteBytes: BigInt(values.write),
      netInBytes: BigInt(values.netIn),
      netOutBytes: BigInt(values.netOut),
    }),
    gauges: create(GaugesSchema, {
      memoryAllocatedBytes: BigInt(values.memory),
      memoryResidentBytes: BigInt(values.resident),
      diskAllocatedBytes: BigInt(values.disk),
    }),
  });
}

export interface TestColumn {
  readonly vmId: string;
  readonly incarnation?: number;
  readonly seq: number;
  /** Absent: nothing could be read. */
  readonly values?: TestValues;
}

export function testFrame(
  frameSeq: number,
  atMs: number,
  columns: readonly TestColumn[],
  fields: { hostId?: string; hostEpoch?: bigint } = {},
): SampleFrame {
  const column = (pick: (values: TestValues) => number) =>
    columns.map(({ values }) => (values === undefined ? Number.NaN : pick(values)));
  return create(SampleFrameSchema, {
    hostId: "host_1",
    hostEpoch: 1n,
    ...fields,
    frameSeq: BigInt(frameSeq),
    atMs: BigInt(atMs),
    vmIds: columns.map(({ vmId }) => vmId),
    incarnations: columns.map(({ incarnation = 1 }) => incarnation),
    seqs: columns.map(({ seq }) => seq),
    cpuTimeUs: column((v) => v.cpu),
    diskReadBytes: column((v) => v.read),
    diskWriteBytes: column((v) => v.write),
    netInBytes: column((v) => v.netIn),
    netOutBytes: column((v) => v.netOut),
    memoryAllocatedBytes: column((v) => v.memory),
    memoryResidentBytes: column((v) => v.resident),
    diskAllocatedBytes: column((v) => v.disk),
  });
}

export interface Totals {
  cpu: bigint;
  read: bigint;
  write: bigint;
  netIn: bigint;
  netOut: bigint;
  memoryByteMs: bigint;
  expected: number;
  seen: number;
}

/**
 * Adds up the windows of one series after checking what must hold of any chain: each opens where the one before closed,
 * in time and in counters, and names its hash. Throws when it does not.
 */
export function addUp(windows: readonly UsageWindow[]): Totals {
  const totals: Totals = {
    cpu: 0n,
    read: 0n,
    write: 0n,
    netIn: 0n,
    netOut: 0n,
    memoryByteMs: 0n,
    expected: 0,
    seen: 0,
  };
  let before: UsageWindow | undefined;
  for (const window of windows) {
    const { opening, closing } = window;
    if (opening === undefined || closing === undefined) throw new Error("a window without counters");
    const hash = before === undefined ? "" : hashOf(before);
    if (Buffer.from(window.previousHash).toString("hex") !== hash) throw new Error("the chain of hashes is broken");
    if (before !== undefined && window.coveredFromMs !== before.coveredToMs) throw new Error("time is not covered");
    if (before !== undefined && JSON.stringify(before.closing, big) !== JSON.stringify(opening, big)) {
      throw new Error("a window does not open where the one before closed");
    }
    totals.cpu += (closing.cpuTimeUs ?? 0n) - (opening.cpuTimeUs ?? 0n);
    totals.read += (closing.diskReadBytes ?? 0n) - (opening.diskReadBytes ?? 0n);
    totals.write += (closing.diskWriteBytes ?? 0n) - (opening.diskWriteBytes ?? 0n);
    totals.netIn += (closing.netInBytes ?? 0n) - (opening.netInBytes ?? 0n);
    totals.netOut += (closing.netOutBytes ?? 0n) - (opening.netOutBytes ?? 0n);
    totals.memoryByteMs += BigInt(window.memoryAllocated?.byteMs ?? "0");
    totals.expected += window.samplesExpected;
    totals.seen += window.samplesSeen;
    before = window;
  }
  return totals;
}

export function windowsOf(batches: readonly WindowBatch[], vmId: string, incarnation = 1): UsageWindow[] {
  return batches
    .flatMap((batch) => batch.windows)
    .filter(({ series }) => series?.vmId === vmId && series.incarnation === incarnation);
}

export function hashOf(window: UsageWindow): string {
  return createHash("sha256").update(toBinary(UsageWindowSchema, window)).digest("hex");
}

function big(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? value.toString() : value;
}
