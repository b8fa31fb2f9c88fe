import assert from "node:assert/strict";
import { test } from "node:test";
import { type Clock, newId } from "@unkey/base";
import type { VmProcess } from "@unkey/vmm";
import type { Sample, Series } from "../domain/sample.ts";
import type { HostCounters } from "../ports.ts";
import { Sampler, type Tick } from "./sampler.ts";

const baseline = { seq: 0, atMs: 1_000 } as Sample;

function seriesOf(): Series {
  const ids = { tenantId: newId("tenant"), vmId: newId("vm"), appId: newId("app"), deploymentId: newId("dep") };
  return { ...ids, incarnation: 1, baseline, final: undefined, startConfirmed: false };
}

function bed() {
  let nowMs = 1_000;
  const closed: string[] = [];
  const ticks: Tick[] = [];
  const clock: Clock = {
    nowMs: () => nowMs,
    monotonicNs: () => BigInt(nowMs) * 1_000_000n,
    sleep: async () => undefined,
  };
  const sampler = new Sampler({ clock, onTick: (tick) => ticks.push(tick) });
  const process = { readBlockCounters: async () => [] } as unknown as VmProcess;
  const add = (series: Series) => {
    const counters: HostCounters = {
      read: () => ({ cpuTimeUs: nowMs, memoryResidentBytes: 1, diskAllocatedBytes: 1, netInBytes: 1, netOutBytes: 1 }),
      close: () => closed.push(series.vmId),
    };
    sampler.add(series, process, counters, 1);
  };
  const tickAt = (atMs: number) => {
    nowMs = atMs;
    sampler.tick();
  };
  const sent = () => ticks.map(({ atMs, columns }) => [atMs, ...columns.map(({ vmId, sample }) => [vmId, sample.seq])]);
  return { sampler, add, tickAt, sent, closed };
}

test("what is read while a start is told is sent after it, with the instants of its ticks", () => {
  const { sampler, add, tickAt, sent } = bed();
  const [held, other] = [seriesOf(), seriesOf()];
  add(other);
  add(held);
  sampler.hold(held.vmId);
  tickAt(1_100);
  tickAt(1_200);
  sampler.release(held.vmId);
  tickAt(1_300);
  assert.deepEqual(sent(), [
    [1_100, [other.vmId, 1]],
    [1_200, [other.vmId, 2]],
    [1_100, [held.vmId, 1]],
    [1_200, [held.vmId, 2]],
    [1_300, [other.vmId, 3], [held.vmId, 3]],
  ]);
});

test("nothing is sent while all that there is waits, and a VM that is forgotten sends nothing", () => {
  const { sampler, add, tickAt, sent, closed } = bed();
  const held = seriesOf();
  add(held);
  sampler.hold(held.vmId);
  tickAt(1_100);
  sampler.forget(held.vmId);
  sampler.release(held.vmId);
  tickAt(1_200);
  assert.deepEqual(sent(), []);
  assert.deepEqual(closed, [held.vmId]);
  assert.equal(sampler.size, 0);
});
