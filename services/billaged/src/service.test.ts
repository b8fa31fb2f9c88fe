import assert from "node:assert/strict";
import { test } from "node:test";
import type { ConnectRouter } from "@connectrpc/connect";
import { type FrameAck, MeteringService, type SampleFrame } from "@unkey/api/metering";
import { type ErrorReason, isServiceError } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { inMemoryClient } from "@unkey/rpc";
import { MemoryLogFolder } from "./adapters/memory-log-folder.ts";
import { MemoryMeterStore } from "./adapters/memory-meter-store.ts";
import { noValues, testFrame, testSample, testSeries } from "./domain/testing.ts";
import { meteringHandlers } from "./handlers.ts";
import { MeterService } from "./service.ts";
import { WakeUp } from "./wake-up.ts";

const t0 = 29_000_000 * 60_000;
const values = { ...noValues, cpu: 10, memory: 1 << 30 };
const vm = { tenantId: "tenant_1", series: testSeries("vm_a"), baseline: testSample(0, t0, noValues) };
const refusal = (reason: ErrorReason) => (error: unknown) => isServiceError(error, reason);

async function setUp(options: { limitBytes?: number } = {}) {
  const time = { nowMs: t0 };
  const folder = new MemoryLogFolder();
  const store = new MemoryMeterStore();
  const metrics = new Metrics();
  const service = await MeterService.open({
    folder,
    store,
    clock: {
      nowMs: () => time.nowMs,
      monotonicNs: () => BigInt(time.nowMs) * 1_000_000n,
      sleep: async () => undefined,
    },
    log: createLogger({ write: () => undefined }),
    metrics,
    limitBytes: options.limitBytes ?? 2 ** 30,
    segmentBytes: 100_000,
    news: new WakeUp(),
  });
  const stopping = new AbortController();
  const routes = (router: ConnectRouter) => router.service(MeteringService, meteringHandlers(service, stopping.signal));
  const client = (caller: string) => inMemoryClient(MeteringService, { routes, caller: { service: caller } });
  return { service, folder, store, metrics, time, stopping, client, metald: client("metald") };
}

async function* frames(...list: SampleFrame[]) {
  yield* list;
}
const frameOf = (seq: number, atMs = t0 + seq * 100) => testFrame(seq, atMs, [{ vmId: "vm_a", seq, values }]);

async function collect(acks: AsyncIterable<FrameAck>): Promise<FrameAck[]> {
  const all: FrameAck[] = [];
  for await (const ack of acks) all.push(ack);
  return all;
}

test("a stream is acknowledged up to the last durable frame", async () => {
  const { metald, service } = await setUp();
  await metald.notifyVmStarted(vm);
  const acks = await collect(metald.streamSamples(frames(...Array.from({ length: 500 }, (_, i) => frameOf(i + 1)))));
  assert.deepEqual([acks.at(-1)?.hostEpoch, acks.at(-1)?.frameSeq], [1n, 500n]);
  assert.deepEqual(
    acks.map((ack) => ack.frameSeq),
    acks.map((ack) => ack.frameSeq).toSorted((a, b) => Number(a - b)),
  );
  assert.equal(service.status().samplesTotal, 500n);
  const again = await collect(metald.streamSamples(frames(frameOf(499), frameOf(500), frameOf(501))));
  assert.equal(again.at(-1)?.frameSeq, 501n);
  assert.equal(service.status().samplesTotal, 501n);
});

test("a frame that fails to be written is not acknowledged, and the stream says so", async () => {
  const { metald, folder } = await setUp();
  await metald.notifyVmStarted(vm);
  folder.failAfter(2);
  await assert.rejects(collect(metald.streamSamples(frames(frameOf(1)))), refusal("METER_LOG_FAILED"));
  const acks = await collect(metald.streamSamples(frames(frameOf(1))));
  assert.equal(acks.at(-1)?.frameSeq, 1n);
});

test("bad frames are refused and cost the stream, not the meter", async () => {
  const { metald, service } = await setUp();
  const good = frameOf(1);
  const bad: Partial<SampleFrame>[] = [
    { cpuTimeUs: [1, 2] },
    { cpuTimeUs: [-1] },
    { cpuTimeUs: [0.5] },
    { cpuTimeUs: [2 ** 53] },
    { cpuTimeUs: [Number.POSITIVE_INFINITY] },
    { seqs: [0] },
    { seqs: [1.5] },
    { vmIds: [""] },
    { vmIds: ["x".repeat(129)] },
    { incarnations: [] },
    { atMs: BigInt(t0 + 6 * 60_000) },
    { atMs: BigInt(t0 - 96 * 24 * 3_600_000) },
    { frameSeq: 0n },
    { hostId: "" },
  ];
  for (const fields of bad) {
    await assert.rejects(
      collect(metald.streamSamples(frames({ ...good, ...fields }))),
      (error) => isServiceError(error) && error.code === "invalid_argument",
      JSON.stringify(fields, (_, value: unknown) => (typeof value === "bigint" ? value.toString() : value)),
    );
  }
  const other = { ...frameOf(2), hostId: "host_2" };
  await assert.rejects(collect(metald.streamSamples(frames(good, other))), refusal("INVALID_REQUEST"));
  assert.equal(service.progress("host_1").frameSeq, 1);
});

test("an older metald of the same host is refused", async () => {
  const { metald } = await setUp();
  await collect(metald.streamSamples(frames({ ...frameOf(1), hostEpoch: 7n })));
  const late = { ...frameOf(2), hostEpoch: 6n };
  await assert.rejects(collect(metald.streamSamples(frames(late))), refusal("STALE_HOST_EPOCH"));
});

test("starts and ends are idempotent, and contradictions are refused", async () => {
  const { metald, store, service } = await setUp();
  await metald.notifyVmStarted(vm);
  await metald.notifyVmStarted(vm);
  const otherBaseline = { ...vm, baseline: testSample(0, t0, values) };
  await assert.rejects(metald.notifyVmStarted(otherBaseline), refusal("SERIES_CONFLICT"));
  const otherTenant = { ...vm, tenantId: "tenant_2", series: testSeries("vm_a", { tenantId: "tenant_2" }) };
  await assert.rejects(metald.notifyVmStarted(otherTenant), refusal("SERIES_CONFLICT"));
  await assert.rejects(metald.notifyVmStarted({ ...vm, tenantId: "tenant_2" }), refusal("INVALID_REQUEST"));
  await assert.rejects(metald.notifyVmStarted({ tenantId: "tenant_1" }), refusal("INVALID_REQUEST"));
  const end = { ...vm, final: testSample(0, t0 + 900, values) };
  const tooEarly = { ...vm, final: testSample(0, t0 - 1, values) };
  await assert.rejects(metald.notifyVmStopped(tooEarly), refusal("INVALID_REQUEST"));
  await metald.notifyVmStopped(end);
  await metald.notifyVmStopped(end);
  await assert.rejects(metald.notifyVmStarted(vm), refusal("SERIES_ENDED"));
  await service.flush();
  assert.equal((await store.backlog()).batches, 1);
});

test("when the log is nearly full no VM starts, later no sample is taken, and an end always is", async () => {
  const { metald, service, store } = await setUp({ limitBytes: 20_000 });
  await metald.notifyVmStarted(vm);
  let seq = 1;
  const newVm = { ...vm, series: testSeries("vm_b") };
  while (Number(service.status().logBytes) < 18_000) await service.ingest(frameOf(seq++));
  await assert.rejects(metald.notifyVmStarted(newVm), refusal("METER_LOG_FULL"));
  while (Number(service.status().logBytes) < 20_000) await service.ingest(frameOf(seq++));
  await assert.rejects(collect(metald.streamSamples(frames(frameOf(seq)))), refusal("METER_LOG_FULL"));
  await metald.notifyVmStarted(vm); // known already: nothing to write
  await metald.notifyVmStopped({ ...vm, final: testSample(0, t0 + 300_000, { ...values, cpu: 99 }) });
  await service.flush();
  assert.equal((await store.backlog()).batches, 1);
});

test("minutes close without a single frame when time passes", async () => {
  const { metald, service, store, time } = await setUp();
  await metald.notifyVmStarted(vm);
  await collect(metald.streamSamples(frames(frameOf(1))));
  for (let second = 0; second < 200; second++) {
    time.nowMs += 1_000;
    await service.pass();
  }
  const pending = await store.pending(0, 100);
  assert.equal(pending.length, 3); // one a minute
  assert.ok(Number(service.status().logBytes) < 5_000);
});

test("a save that fails is made up for, and the log is kept until then", async () => {
  const { metald, service, store, time } = await setUp();
  await metald.notifyVmStarted(vm);
  store.failNextSave("before");
  const minutes = Array.from({ length: 130 }, (_, i) => frameOf(i + 1, t0 + (i + 1) * 1_000));
  time.nowMs = t0 + 130_000;
  await collect(metald.streamSamples(frames(...minutes)));
  await service.pass();
  assert.equal((await store.backlog()).batches, 2);
  assert.ok(await store.checkpoint());
});

test("batches that come while others are being saved are saved too", async () => {
  const { metald, service, store } = await setUp();
  const gate = Promise.withResolvers<void>();
  const save = store.save.bind(store);
  store.save = async (batches, checkpoint) => {
    const copy = [...batches];
    await gate.promise;
    await save(copy, checkpoint);
  };
  const lives = ["vm_a", "vm_b", "vm_c"].map((vmId) => ({ ...vm, series: testSeries(vmId) }));
  for (const life of lives) await metald.notifyVmStarted(life);
  for (const life of lives) await metald.notifyVmStopped({ ...life, final: testSample(0, t0 + 500, values) });
  gate.resolve();
  await service.flush();
  assert.equal((await store.backlog()).batches, 3);
});

test("windows are shown to their tenant only", async () => {
  const { metald, client } = await setUp();
  await metald.notifyVmStarted(vm);
  await collect(metald.streamSamples(frames(frameOf(1), frameOf(2))));
  const operator = client("operator");
  const own = await operator.listWindows({ tenantId: "tenant_1", vmId: "vm_a" });
  assert.deepEqual([own.closed.length, own.open.length, own.open[0]?.samplesSeen], [0, 1, 2]);
  const foreign = await operator.listWindows({ tenantId: "tenant_2", vmId: "vm_a" });
  assert.deepEqual([foreign.closed.length, foreign.open.length], [0, 0]);
  await assert.rejects(operator.listWindows({ vmId: "vm_a" }), refusal("INVALID_REQUEST"));
  await assert.rejects(
    metald.listWindows({ tenantId: "tenant_1", vmId: "vm_a" }),
    (error) => isServiceError(error) && error.code === "permission_denied",
  );
  assert.equal((await operator.getMeteringStatus({})).openSeries, 1);
});

test("a stop ends streams that have no end", async () => {
  const { metald, stopping } = await setUp();
  const endless = async function* () {
    yield frameOf(1);
    await new Promise(() => undefined);
  };
  const iterator = metald.streamSamples(endless())[Symbol.asyncIterator]();
  assert.equal((await iterator.next()).value?.frameSeq, 1n);
  stopping.abort();
  await assert.rejects(iterator.next(), refusal("SHUTTING_DOWN"));
});

test("what is measured is shown", async () => {
  const { metald, metrics } = await setUp();
  await metald.notifyVmStarted(vm);
  await collect(metald.streamSamples(frames(frameOf(1), testFrame(2, t0 + 200, [{ vmId: "vm_x", seq: 1, values }]))));
  const text = metrics.render();
  assert.match(text, /^unkey_billaged_samples 1$/m);
  assert.match(text, /^unkey_billaged_samples_unannounced 1$/m);
  assert.match(text, /^unkey_billaged_open_series 1$/m);
});
