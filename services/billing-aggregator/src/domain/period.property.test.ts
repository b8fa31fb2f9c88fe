import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { monthStartMs, segmentsOf, widenPeriod } from "./period.ts";

const dayMs = 86_400_000;
const nowMs = Date.UTC(2026, 10, 23, 13, 17, 42, 123);
const grains = { window: 60_000, "1h": 3_600_000, "1d": dayMs };
const asked = fc
  .tuple(fc.integer({ min: 0, max: 5 * 365 * dayMs }), fc.integer({ min: 1, max: 3 * 365 * dayMs }))
  .map(([age, length]) => ({ fromMs: nowMs - age, toMs: nowMs - age + length }));

test("segments tile the period in order, aligned to what they are read from", () => {
  fc.assert(
    fc.property(asked, (question) => {
      const period = widenPeriod(question, nowMs);
      assert.ok(period.fromMs <= question.fromMs && period.toMs >= question.toMs);
      let atMs = period.fromMs;
      const segments = segmentsOf(period);
      for (const { source, fromMs, toMs } of segments) {
        assert.equal(fromMs, atMs);
        assert.ok(toMs > fromMs);
        assert.equal(fromMs % grains[source], 0);
        assert.equal(toMs % grains[source], 0);
        atMs = toMs;
      }
      assert.equal(atMs, period.toMs);
      assert.ok(segments.length <= 5);
    }),
  );
});

test("nothing is read from a table that may have dropped it", () => {
  const kept = { window: 95, "1h": 400, "1d": 1826 };
  fc.assert(
    fc.property(asked, (question) => {
      for (const { source, fromMs } of segmentsOf(widenPeriod(question, nowMs))) {
        if (source !== "1d") assert.ok(nowMs - fromMs < kept[source] * dayMs, source);
      }
    }),
  );
});

test("a recent period is widened by less than a minute at each end", () => {
  assert.deepEqual(widenPeriod({ fromMs: nowMs - 1000, toMs: nowMs }, nowMs), {
    fromMs: Date.UTC(2026, 10, 23, 13, 17),
    toMs: Date.UTC(2026, 10, 23, 13, 18),
  });
  assert.equal(monthStartMs(nowMs), Date.UTC(2026, 10, 1));
});
