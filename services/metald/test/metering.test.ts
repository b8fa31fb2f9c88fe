import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError, newId, ServiceError } from "@unkey/base";
import { eventually, MetalBed, stateName } from "./support/metal-bed.ts";

test("each tick carries what the host has counted; begin and end are told, and the end comes after the last frame", async (t) => {
  const bed = await MetalBed.open(t);
  const vmId = newId("vm");
  bed.counters.add(vmId, {
    cpuTimeUs: 1_000,
    memoryResidentBytes: 5_000,
    netInBytes: 7,
    netOutBytes: 9,
    diskAllocatedBytes: 4_096,
  });
  await bed.createAndBoot(vmId);
  const [start] = bed.billaged.started;
  assert.equal(start?.series?.vmId, vmId);
  assert.equal(start.series?.incarnation, 1);
  assert.equal(start.baseline?.seq, 0n);
  assert.equal(start.baseline?.counters?.cpuTimeUs, 1_000n);

  bed.machine(vmId).addIo("upper", { readBytes: 300n, writeBytes: 400n });
  bed.run.sampler.tick(); // asks for the disk counters
  await new Promise((resolve) => setImmediate(resolve));
  bed.counters.add(vmId, { cpuTimeUs: 2_000 });
  bed.run.sampler.tick();
  const frame = await eventually(() => bed.billaged.frames[1], "the second frame");
  assert.deepEqual(frame.vmIds, [vmId]);
  assert.deepEqual(frame.cpuTimeUs, [3_000]);
  assert.deepEqual(frame.memoryAllocatedBytes, [256 * 1024 * 1024]);
  assert.deepEqual(frame.memoryResidentBytes, [5_000]);
  assert.deepEqual([frame.netInBytes, frame.netOutBytes, frame.diskAllocatedBytes], [[7], [9], [4_096]]);
  assert.ok((frame.diskReadBytes[0] ?? 0) >= 300);
  assert.ok((frame.seqs[0] ?? 0) > (bed.billaged.frames[0]?.seqs[0] ?? 0));

  bed.counters.add(vmId, { cpuTimeUs: 10, netOutBytes: 1 });
  bed.machine(vmId).addIo("upper", { writeBytes: 1_000_000n });
  await bed.client().shutdownVm({ tenantId: bed.tenantId, vmId });
  const stop = await eventually(() => bed.billaged.stopped[0], "the end");
  assert.equal(stop.final?.counters?.cpuTimeUs, 3_010n);
  assert.equal(stop.final?.counters?.netOutBytes, 10n);
  assert.ok((stop.final?.counters?.diskWriteBytes ?? 0n) >= 1_000_400n);
  assert.deepEqual(stop.baseline, start.baseline);
  assert.ok(Number(stop.final?.seq) > (frame.seqs[0] ?? 0));
  bed.run.sampler.tick();
  assert.equal(bed.run.sampler.size, 0);
});

test("a reading that fails is absent, never zero", async (t) => {
  const bed = await MetalBed.open(t);
  bed.hypervisor.inject("readBlockCounters", { kind: "fail" }, 3);
  const { vmId } = await bed.createAndBoot();
  bed.counters.add(vmId, { netInBytes: Number.NaN });
  bed.run.sampler.tick();
  const frame = await eventually(() => bed.billaged.frames[0], "a frame");
  assert.ok(Number.isNaN(frame.diskReadBytes[0]));
  assert.ok(Number.isNaN(frame.netInBytes[0]));
  assert.equal(bed.billaged.started[0]?.baseline?.counters?.diskReadBytes, undefined);
  await bed.client().shutdownVm({ tenantId: bed.tenantId, vmId });
  const stop = await eventually(() => bed.billaged.stopped[0], "the end");
  assert.equal(stop.final?.counters?.netInBytes, undefined);
});

test("while billaged is away VMs run and start, frames wait in order, and it is told of begins before frames when it is back", async (t) => {
  const bed = await MetalBed.open(t);
  const first = await bed.createAndBoot();
  bed.run.sampler.tick();
  await eventually(() => bed.billaged.frames.length === 1 || undefined, "the first frame");
  bed.billaged.failure = new ServiceError("DEPENDENCY_UNAVAILABLE", "away");
  bed.billaged.disconnect();
  const second = await bed.createAndBoot();
  assert.equal(stateName(second), "RUNNING");
  bed.run.sampler.tick();
  bed.run.sampler.tick();
  await bed.client().shutdownVm({ tenantId: bed.tenantId, vmId: first.vmId });
  assert.equal(bed.run.link.status.unconfirmedFrames, 2);
  assert.equal(bed.run.link.status.connected, false);
  bed.billaged.failure = undefined;
  await eventually(() => bed.billaged.stopped.length === 1 || undefined, "everything is delivered");
  assert.deepEqual(
    bed.billaged.started.map(({ series }) => series?.vmId),
    [first.vmId, second.vmId],
  );
  assert.deepEqual(
    bed.billaged.frames.map(({ frameSeq }) => frameSeq),
    [1n, 2n, 3n],
  );
  assert.equal(bed.run.link.status.unconfirmedFrames, 0);
});

test("frames that were not confirmed are sent again, the same", async (t) => {
  const bed = await MetalBed.open(t);
  await bed.createAndBoot();
  bed.billaged.confirms = false;
  bed.run.sampler.tick();
  bed.run.sampler.tick();
  await eventually(() => bed.billaged.frames.length === 2 || undefined, "two frames");
  bed.billaged.confirms = true;
  bed.billaged.disconnect();
  await eventually(() => bed.run.link.status.unconfirmedFrames === 0 || undefined, "confirmation");
  const [one, two, again, againTwo] = bed.billaged.frames;
  assert.deepEqual([again, againTwo], [one, two]);
});

test("a meter that has no room keeps a VM from starting, and says so", async (t) => {
  const bed = await MetalBed.open(t);
  const vmId = newId("vm");
  await bed.client().createVm(bed.wish(vmId));
  bed.billaged.failure = new ServiceError("HOST_FULL", "no room");
  await assert.rejects(bed.client().bootVm({ tenantId: bed.tenantId, vmId }), (error) =>
    isServiceError(error, "METERING_REFUSED"),
  );
  assert.equal(stateName(await bed.client().getVm({ tenantId: bed.tenantId, vmId })), "FAILED");
});

test("an end that was not delivered survives metald", async (t) => {
  const bed = await MetalBed.open(t);
  const { vmId } = await bed.createAndBoot();
  bed.billaged.failure = new ServiceError("DEPENDENCY_UNAVAILABLE", "away");
  bed.billaged.disconnect();
  await bed.client().deleteVm({ tenantId: bed.tenantId, vmId });
  await bed.kill();
  bed.billaged.failure = undefined;
  await bed.restart();
  const stop = await eventually(() => bed.billaged.stopped[0], "the end");
  assert.equal(stop.series?.vmId, vmId);
  await eventually(
    async () => (await bed.run.sql.query("SELECT 1 FROM series")).length === 0 || undefined,
    "nothing left to tell",
  );
});
