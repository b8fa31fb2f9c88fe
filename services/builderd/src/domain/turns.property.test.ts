import assert from "node:assert/strict";
import { test } from "node:test";
import type { TenantId } from "@unkey/base";
import * as fc from "fast-check";
import { nextTurn, tenantPlaces } from "./turns.ts";

type Move = { readonly kind: "ask"; readonly tenant: number } | { readonly kind: "end"; readonly which: number };

const anyMove: fc.Arbitrary<Move> = fc.oneof(
  fc.record({ kind: fc.constant("ask" as const), tenant: fc.nat(4) }),
  fc.record({ kind: fc.constant("end" as const), which: fc.nat(63) }),
);

const tenant = (at: number) => `tenant_${at}` as TenantId;

test("places are never exceeded nor left empty, a tenant's builds keep their order, and whoever has least goes first", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 6 }),
      fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 5, maxLength: 5 }),
      fc.array(anyMove, { maxLength: 200 }),
      (concurrency, quotas, moves) => {
        const placesOf = (tenantId: TenantId) => tenantPlaces(concurrency, quotas[Number(tenantId.slice(7))] ?? 1);
        const waiting: { readonly tenantId: TenantId; readonly serial: number }[] = [];
        const running: TenantId[] = [];
        const begun = new Map<TenantId, number>();
        const count = (tenantId: TenantId) => running.filter((each) => each === tenantId).length;
        let serial = 0;
        for (const move of moves) {
          if (move.kind === "ask") waiting.push({ tenantId: tenant(move.tenant), serial: serial++ });
          else if (running.length > 0) running.splice(move.which % running.length, 1);
          while (running.length < concurrency) {
            const at = nextTurn(
              waiting.map(({ tenantId }) => tenantId),
              running,
              placesOf,
            );
            if (at === undefined) break;
            const [build] = waiting.splice(at, 1);
            assert.ok(build);
            const { tenantId } = build;
            // Nobody who may begin has fewer running, and of those with as few nobody asked earlier.
            for (const other of waiting) {
              if (count(other.tenantId) >= placesOf(other.tenantId)) continue;
              assert.ok(count(other.tenantId) >= count(tenantId));
              if (count(other.tenantId) === count(tenantId)) assert.ok(other.serial > build.serial);
            }
            assert.ok(build.serial > (begun.get(tenantId) ?? -1), "in the order in which its tenant asked");
            begun.set(tenantId, build.serial);
            running.push(tenantId);
            assert.ok(count(tenantId) <= placesOf(tenantId));
            assert.ok(concurrency === 1 || count(tenantId) < concurrency, "one place is not its own");
          }
          const free = running.length < concurrency;
          assert.ok(!free || waiting.every(({ tenantId }) => count(tenantId) >= placesOf(tenantId)), "no place idles");
        }
      },
    ),
  );
});

test("however much one tenant asks for, another begins as soon as a place of the first would be free", () => {
  const [greedy, other] = [tenant(0), tenant(1)];
  for (let concurrency = 2; concurrency < 6; concurrency++) {
    const places = () => tenantPlaces(concurrency, 64);
    const running = Array.from({ length: concurrency - 1 }, () => greedy);
    const waiting = [...Array.from({ length: 100 }, () => greedy), other];
    assert.equal(nextTurn(waiting, running, places), 100);
    assert.equal(nextTurn(waiting.slice(0, 100), running, places), undefined);
  }
});
