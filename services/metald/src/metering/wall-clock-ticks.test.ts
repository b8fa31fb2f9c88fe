import assert from "node:assert/strict";
import { test } from "node:test";
import type { Clock } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { onWallClock } from "./wall-clock-ticks.ts";

/** A clock whose sleeps take what `sleeps` says instead of what was asked, and which stops after the last. */
function scriptedClock(
  startMs: number,
  sleeps: (askedMs: number) => number,
  count: number,
): Clock & { done: Promise<void> } {
  let nowMs = startMs;
  let left = count;
  const done = Promise.withResolvers<void>();
  return {
    done: done.promise,
    nowMs: () => nowMs,
    monotonicNs: () => BigInt(nowMs) * 1_000_000n,
    sleep: async (ms, signal) => {
      if (left-- <= 0) {
        done.resolve();
        await new Promise((_, reject) => signal?.addEventListener("abort", () => reject(new Error("stopped"))));
      }
      nowMs += sleeps(ms);
    },
  };
}

async function ticksOf(startMs: number, sleeps: (askedMs: number) => number, count: number): Promise<number[]> {
  const clock = scriptedClock(startMs, sleeps, count);
  const ticks: number[] = [];
  const log = createLogger({ write: () => undefined });
  await using _ticking = onWallClock(100, () => ticks.push(clock.nowMs()), { clock, log });
  await clock.done;
  return ticks;
}

test("ticks at the multiples of the interval, wherever it starts", async () => {
  assert.deepEqual(await ticksOf(1_030, (asked) => asked, 3), [1_100, 1_200, 1_300]);
});

test("a timer that fires early makes no second tick", async () => {
  assert.deepEqual(await ticksOf(1_030, (asked) => Math.max(1, asked - 1), 6), [1_100, 1_200, 1_300]);
});

test("a late tick is made at once, and those that it covers are skipped", async () => {
  assert.deepEqual(await ticksOf(1_030, (asked) => asked + 250, 2), [1_350, 1_650]);
});

test("a clock that is set back is not waited for", async () => {
  let sleeps = 0;
  const ticks = await ticksOf(100_030, (asked) => (++sleeps === 2 ? -50_000 : asked), 3);
  assert.deepEqual(ticks, [100_100, 50_100, 50_200]);
});
