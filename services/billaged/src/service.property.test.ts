import assert from "node:assert/strict";
import { test } from "node:test";
import { zstdDecompressSync } from "node:zlib";
import { fromBinary } from "@bufbuild/protobuf";
import { type WindowBatch, WindowBatchSchema } from "@unkey/api/metering";
import { createLogger, Metrics } from "@unkey/daemon";
import * as fc from "fast-check";
import { MemoryLogFolder } from "./adapters/memory-log-folder.ts";
import { MemoryMeterStore } from "./adapters/memory-meter-store.ts";
import { addUp, noValues, type TestColumn, testFrame, testSample, testSeries, windowsOf } from "./domain/testing.ts";
import { MeterService } from "./service.ts";
import { WakeUp } from "./wake-up.ts";

const t0 = 29_000_000 * 60_000;
const stepMs = 5_000; // coarse ticks, so that one life crosses many minutes in few frames

/** What a metald does: it keeps what is not confirmed and says it again to whoever answers next. */
class TestHost {
  nowMs = t0;
  frameSeq = 0;
  readonly vms = new Map<string, { seq: number; cpu: number; baselineAtMs: number }>();
  /** Reports that have not been confirmed, in order. */
  unconfirmed: { send: (service: MeterService) => Promise<void> }[] = [];
  readonly finals = new Map<string, bigint>();

  start(vmId: string): void {
    if (this.vms.has(vmId) || this.finals.has(vmId)) return;
    const baselineAtMs = this.nowMs;
    this.vms.set(vmId, { seq: 0, cpu: 0, baselineAtMs });
    const life = {
      tenantId: "tenant_1",
      series: testSeries(vmId),
      baseline: testSample(0, baselineAtMs, noValues),
    };
    this.unconfirmed.push({ send: (service) => service.vmStarted(life).catch(ignoreEnded) });
  }

  tick(step: number, lost: boolean): void {
    this.nowMs += stepMs;
    const columns: TestColumn[] = [];
    for (const [vmId, vm] of this.vms) {
      vm.seq += 1;
      vm.cpu += step;
      columns.push({ vmId, seq: vm.seq, values: { ...noValues, cpu: vm.cpu } });
    }
    this.frameSeq += 1;
    const frame = testFrame(this.frameSeq, this.nowMs, columns);
    if (!lost) this.unconfirmed.push({ send: (service) => service.ingest(frame) });
  }

  stop(vmId: string): void {
    const vm = this.vms.get(vmId);
    if (vm === undefined) return;
    this.vms.delete(vmId);
    this.finals.set(vmId, BigInt(vm.cpu + 1));
    const life = {
      tenantId: "tenant_1",
      series: testSeries(vmId),
      baseline: testSample(0, vm.baselineAtMs, noValues),
      final: testSample(0, this.nowMs + 50, { ...noValues, cpu: vm.cpu + 1 }),
    };
    this.unconfirmed.push({ send: (service) => service.vmStopped(life) });
  }

  /** Says everything unconfirmed; what fails, and all behind it, stays. */
  async report(service: MeterService): Promise<void> {
    while (this.unconfirmed.length > 0) {
      await this.unconfirmed[0]?.send(service);
      this.unconfirmed.shift();
    }
  }
}

function ignoreEnded(error: unknown): void {
  if (!(error instanceof Error && "reason" in error && error.reason === "SERIES_ENDED")) throw error;
}

const anyEvent = fc.oneof(
  { weight: 8, arbitrary: fc.record({ kind: fc.constant("ticks" as const), count: fc.integer({ min: 1, max: 15 }) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("lost" as const), count: fc.integer({ min: 1, max: 30 }) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("start" as const), vm: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("stop" as const), vm: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("badSave" as const), after: fc.boolean() }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("crash" as const),
      after: fc.integer({ min: 1, max: 30 }),
      keep: fc.constantFrom(0, 0.5, 1),
      entries: fc.boolean(),
    }),
  },
);

test("through crashes, lost frames and failed saves the totals are exact and no batch changes its bytes", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(anyEvent, { minLength: 5, maxLength: 60 }), async (events) => {
      let folder = new MemoryLogFolder();
      let crash: { keep: number; entries: boolean } | undefined;
      const store = new MemoryMeterStore();
      const host = new TestHost();
      const deps = {
        store,
        clock: {
          nowMs: () => host.nowMs,
          monotonicNs: () => BigInt(host.nowMs) * 1_000_000n,
          sleep: async () => undefined,
        },
        log: createLogger({ write: () => undefined }),
        metrics: new Metrics(),
        limitBytes: 2 ** 30,
        segmentBytes: 2_000,
        news: new WakeUp(),
      };
      let service: MeterService | undefined;
      const report = async () => {
        for (let attempt = 0; ; attempt++) {
          try {
            service ??= await MeterService.open({ ...deps, folder });
            await host.report(service);
            return;
          } catch (error) {
            // Whatever failed, it starts again from what the disk still holds.
            if (attempt > 5) throw error;
            folder = folder.afterPowerLoss(crash?.keep ?? 1, crash?.entries ?? true);
            crash = undefined;
            service = undefined;
          }
        }
      };
      host.start("vm_0");
      for (const event of events) {
        if (event.kind === "ticks") for (let i = 0; i < event.count; i++) host.tick(event.count, false);
        if (event.kind === "lost") for (let i = 0; i < event.count; i++) host.tick(event.count, true);
        if (event.kind === "start") host.start(`vm_${event.vm}`);
        if (event.kind === "stop") host.stop(`vm_${event.vm}`);
        if (event.kind === "badSave") store.failNextSave(event.after ? "after" : "before");
        if (event.kind === "crash") {
          crash = event;
          folder.cutPowerAfter(event.after);
        }
        await report();
      }
      for (const vmId of host.vms.keys()) host.stop(vmId);
      await report();
      store.failNextSave("never");
      folder.cutPowerAfter(1); // and once more, with nothing said again: what was confirmed is enough
      folder = folder.afterPowerLoss(0, false);
      service = await MeterService.open({ ...deps, folder });
      await service.flush();

      const batches: WindowBatch[] = (await store.pending(0, 1_000_000)).map(({ zstd }) =>
        fromBinary(WindowBatchSchema, zstdDecompressSync(zstd)),
      );
      assert.deepEqual(
        batches.map((batch) => Number(batch.batchSeq)),
        batches.map((_, i) => i + 1),
      );
      for (const [vmId, cpu] of host.finals) assert.equal(addUp(windowsOf(batches, vmId)).cpu, cpu, vmId);
      assert.equal(service.status().openSeries, 0);
    }),
    { numRuns: 150 },
  );
});
