import assert from "node:assert/strict";
import { test } from "node:test";
import type { Clock } from "@unkey/base";
import { everyMs } from "./every.ts";
import { createLogger } from "./log.ts";

/** A clock that stands still until told: `sleep` notes what was asked and waits for `wake`. */
function manualClock() {
  let nowNs = 0n;
  const asked: number[] = [];
  let wake: (() => void) | undefined;
  const clock: Clock = {
    nowMs: () => Number(nowNs / 1_000_000n),
    monotonicNs: () => nowNs,
    sleep: (ms, signal) =>
      new Promise((resolve, reject) => {
        asked.push(ms);
        wake = resolve;
        if (signal?.aborted) reject(new Error("aborted"));
        signal?.addEventListener("abort", () => reject(new Error("aborted")), { once: true });
      }),
  };
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  return {
    clock,
    asked,
    async advance(ms: number) {
      nowNs += BigInt(Math.round(ms * 1e6));
      wake?.();
      await settle();
    },
    spend: (ms: number) => {
      nowNs += BigInt(ms * 1e6);
    },
    settle,
  };
}

const log = createLogger({ write: () => undefined });

test("passes keep to the schedule, skip what they overran and survive a failure", async () => {
  const time = manualClock();
  const ran: number[] = [];
  const work = [0, 30, 250, 0, 0];
  const passes = everyMs(
    100,
    () => {
      ran.push(time.clock.nowMs());
      time.spend(work[ran.length - 1] ?? 0);
      if (ran.length === 2) throw new Error("once");
    },
    { name: "test", log, clock: time.clock },
  );
  await time.settle();
  await time.advance(100);
  await time.advance(100.4); // the timer fires late
  await time.advance(69.6);
  await time.advance(50); // the third pass ran from 300 to 550
  assert.deepEqual(ran, [100, 200, 300, 600]);
  assert.deepEqual(time.asked, [100, 100, 70, 50, 100]);
  await passes[Symbol.asyncDispose]();
});

test("a timer that fires early does not cause a second pass for the same due time", async () => {
  const time = manualClock();
  let ran = 0;
  const passes = everyMs(100, () => void ran++, { name: "test", log, clock: time.clock });
  await time.settle();
  await time.advance(99.5);
  assert.equal(ran, 1);
  assert.equal(time.asked.at(-1), 101);
  await passes[Symbol.asyncDispose]();
});

test("disposal aborts the running pass and waits for it", async () => {
  const time = manualClock();
  const entered = Promise.withResolvers<AbortSignal>();
  const finish = Promise.withResolvers<void>();
  let done = false;
  const passes = everyMs(
    100,
    async (signal) => {
      entered.resolve(signal);
      await finish.promise;
      done = true;
    },
    { name: "test", log, clock: time.clock, atStart: true },
  );
  const signal = await entered.promise;
  const disposed = passes[Symbol.asyncDispose]();
  await time.settle();
  assert.equal(signal.aborted, true);
  assert.equal(done, false);
  finish.resolve();
  await disposed;
  assert.equal(done, true);
  await passes[Symbol.asyncDispose]();
});
