import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { type Sample, seqAt } from "./sample.ts";

test("numbers follow the clock, skip what was missed, and never repeat, whatever the clock does", () => {
  const baseline = { atMs: 1_000 } as Sample;
  assert.equal(seqAt(baseline, 1_100, 0), 1);
  assert.equal(seqAt(baseline, 1_203, 1), 2);
  assert.equal(seqAt(baseline, 6_000, 2), 50); // a restart that took 4.8 s
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 100_000 })), (instants) => {
      let previous = 0;
      for (const atMs of instants) {
        const seq = seqAt(baseline, atMs, previous);
        assert.ok(seq > previous);
        previous = seq;
      }
    }),
  );
});
