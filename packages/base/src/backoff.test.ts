import assert from "node:assert/strict";
import { test } from "node:test";
import { backoffDelayMs } from "./backoff.ts";

const backoff = { baseMs: 100, maxMs: 3000 };

test("the longest delay doubles with each attempt up to its bound, for ever", () => {
  const longest = [0, 1, 2, 3, 4, 5, 6, 1000, 1e9].map((attempt) =>
    backoffDelayMs(backoff, attempt, () => 1 - 2 ** -53),
  );
  assert.deepEqual(longest, [100, 200, 400, 800, 1600, 3000, 3000, 3000, 3000]);
});

test("the whole range down to nothing is used", () => {
  assert.equal(
    backoffDelayMs(backoff, 3, () => 0),
    0,
  );
  assert.equal(
    backoffDelayMs(backoff, 3, () => 0.25),
    200,
  );
});
