import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { exceeded, fits, placementOrder } from "./placement.ts";

const host = (hostId: string, memoryMib: number, usedMib = 0, draining = false) => ({
  hostId,
  draining,
  capacity: { vcpuCount: 1000, memoryBytes: BigInt(memoryMib) << 20n, diskBytes: 1n << 40n },
  allocated: { vcpuCount: 0, memoryBytes: BigInt(usedMib) << 20n, diskBytes: 0n },
});
const size = (memoryMib: number) => ({ vcpuCount: 1, memoryBytes: BigInt(memoryMib) << 20n, diskBytes: 1n << 30n });

test("a host fits what is free, and nothing while it drains", () => {
  assert.ok(fits(host("a", 1024), size(1024)));
  assert.ok(!fits(host("a", 1024, 1), size(1024)));
  assert.ok(!fits(host("a", 1024, 0, true), size(1)));
  assert.deepEqual(exceeded(host("a", 1024, 1024), size(1024)), []);
  assert.deepEqual(exceeded(host("a", 1024), { ...size(1025), vcpuCount: 1001 }), ["vcpuCount", "memoryBytes"]);
});

test("when all hosts are looked at, the one with most room comes first", () => {
  const hosts = [host("small", 1024), host("big", 8192), host("used", 8192, 8000)];
  assert.deepEqual(
    placementOrder(hosts, size(100), 3, () => 0).map(({ hostId }) => hostId),
    ["big", "small", "used"],
  );
});

test("every host that fits is tried exactly once, whatever is drawn", () => {
  const anyHost = fc.record({
    memory: fc.integer({ min: 1, max: 64 }),
    used: fc.integer({ min: 0, max: 64 }),
    draining: fc.boolean(),
  });
  fc.assert(
    fc.property(
      fc.array(anyHost, { maxLength: 12 }),
      fc.integer({ min: 1, max: 4 }),
      fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })),
      (specs, k, numbers) => {
        const hosts = specs.map((spec, i) => host(`h${i}`, spec.memory, spec.used, spec.draining));
        const order = placementOrder(hosts, size(8), k, () => numbers.next().value ?? 0);
        assert.deepEqual(
          order.map(({ hostId }) => hostId).toSorted(),
          hosts
            .filter((each) => fits(each, size(8)))
            .map(({ hostId }) => hostId)
            .toSorted(),
        );
      },
    ),
  );
});
