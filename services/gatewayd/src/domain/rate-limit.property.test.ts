import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { decideRate } from "./rate-limit.ts";

const anyLimit = fc.record({ burst: fc.integer({ min: 1, max: 50 }), perSecond: fc.integer({ min: 1, max: 1000 }) });

test("decides as a bucket of `burst` tokens that refills at `perSecond`", () => {
  fc.assert(
    fc.property(anyLimit, fc.array(fc.integer({ min: 0, max: 400 }), { maxLength: 200 }), (limit, pauses) => {
      let nowMs = 1_000_000;
      let arrivalMs: number | undefined;
      let tokens = limit.burst;
      for (const pause of pauses) {
        nowMs += pause;
        tokens = Math.min(limit.burst, tokens + (pause * limit.perSecond) / 1000);
        const decision = decideRate(limit, arrivalMs, nowMs);
        arrivalMs = decision.arrivalMs;
        // At the very edge, rounding may fall either way.
        if (Math.abs(tokens - 1) > 1e-6) assert.equal(decision.allowed, tokens >= 1);
        if (decision.allowed) {
          tokens -= 1;
          if (Math.abs(tokens - Math.round(tokens)) > 1e-6)
            assert.equal(decision.remaining, Math.floor(Math.max(0, tokens)));
        } else {
          assert.ok(decision.retryAfterMs > 0);
          assert.ok(decideRate(limit, arrivalMs, nowMs + decision.retryAfterMs + 1e-6).allowed);
        }
      }
    }),
  );
});

test("a whole burst passes at once and not one more", () => {
  const limit = { burst: 5, perSecond: 10 };
  let arrivalMs: number | undefined;
  const allowed = Array.from({ length: 7 }, () => {
    const decision = decideRate(limit, arrivalMs, 0);
    arrivalMs = decision.arrivalMs;
    return [decision.allowed, decision.remaining];
  });
  assert.deepEqual(allowed, [
    [true, 4],
    [true, 3],
    [true, 2],
    [true, 1],
    [true, 0],
    [false, 0],
    [false, 0],
  ]);
});
