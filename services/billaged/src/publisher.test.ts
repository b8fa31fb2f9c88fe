import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate } from "node:timers/promises";
import { BatchOutcome } from "@unkey/api/billing";
import type { Clock } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { MemoryMeterStore } from "./adapters/memory-meter-store.ts";
import type { BatchSink, PendingBatch } from "./ports.ts";
import { Publisher } from "./publisher.ts";
import { WakeUp } from "./wake-up.ts";

const batch = (seq: number): PendingBatch => ({
  seq,
  batchId: `batch ${seq}`,
  zstd: Uint8Array.of(seq),
  bytes: 1,
  sha256: new Uint8Array(32),
});

/** Time that passes only while somebody sleeps, and remembers for how long. */
function sleepyClock(): { clock: Clock; sleptMs: number[] } {
  const sleptMs: number[] = [];
  const clock: Clock = {
    nowMs: () => 0,
    monotonicNs: () => 0n,
    sleep: async (ms, signal) => {
      sleptMs.push(ms);
      await setImmediate();
      signal?.throwIfAborted();
    },
  };
  return { clock, sleptMs };
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 10_000; i++) {
    if (condition()) return;
    await setImmediate();
  }
  assert.fail("it did not come true");
}

function setUp(sink: BatchSink) {
  const store = new MemoryMeterStore();
  const news = new WakeUp();
  const settled: string[] = [];
  const lines: string[] = [];
  const { clock, sleptMs } = sleepyClock();
  const start = () =>
    new Publisher({
      store,
      sink,
      clock,
      log: createLogger({ write: (line) => lines.push(line) }),
      news,
      onSettled: async (batchId) => {
        settled.push(batchId);
        await store.settle(batchId);
      },
    });
  return { store, news, settled, lines, sleptMs, start };
}

test("sends in order, forgets what is settled, and picks up what comes later", async () => {
  const sent: string[] = [];
  const { store, news, settled, start } = setUp({
    async *publish(batches) {
      for await (const { batchId } of batches) {
        sent.push(batchId);
        yield { batchId, outcome: BatchOutcome.ACCEPTED, detail: "" };
      }
    },
  });
  await store.save([batch(1), batch(2), batch(3)]);
  await using publisher = start();
  await until(() => settled.length === 3);
  await store.save([batch(4)]);
  news.call();
  await until(() => settled.length === 4);
  assert.deepEqual(sent, ["batch 1", "batch 2", "batch 3", "batch 4"]);
  assert.equal((await store.backlog()).batches, 0);
  publisher.check();
});

test("keeps at most eight on the way", async () => {
  let pulled = 0;
  const release = Promise.withResolvers<void>();
  const { store, settled, start } = setUp({
    async *publish(batches) {
      const ids: string[] = [];
      const reader = (async () => {
        for await (const { batchId } of batches) {
          pulled += 1;
          ids.push(batchId);
        }
      })();
      await release.promise;
      for (let i = 0; i < 20; i++) {
        while (ids.length <= i) await setImmediate();
        yield { batchId: ids[i] ?? "", outcome: BatchOutcome.DUPLICATE, detail: "" };
      }
      await reader;
    },
  });
  await store.save(Array.from({ length: 20 }, (_, i) => batch(i + 1)));
  await using _ = start();
  await until(() => pulled === 8);
  for (let i = 0; i < 50; i++) await setImmediate();
  assert.equal(pulled, 8);
  release.resolve();
  await until(() => settled.length === 20);
});

test("after failures it sends the unsettled again, with growing pauses, and says what fails", async () => {
  let attempts = 0;
  const { store, settled, lines, sleptMs, start } = setUp({
    async *publish(batches) {
      attempts += 1;
      for await (const { batchId } of batches) {
        if (attempts < 30 && batchId !== "batch 1") throw new Error("the aggregator is away");
        yield { batchId, outcome: BatchOutcome.ACCEPTED, detail: "" };
      }
    },
  });
  await store.save([batch(1), batch(2)]);
  await using publisher = start();
  await until(() => attempts === 20);
  assert.throws(() => publisher.check(), /away/);
  assert.ok(sleptMs.every((ms) => ms <= 60_000));
  await until(() => settled.length === 2);
  assert.deepEqual(settled, ["batch 1", "batch 2"]);
  publisher.check();
  assert.ok(lines.some((line) => line.includes("the aggregator is away")));
});

test("a batch put aside is settled and reported; an answer without outcome is not believed", async () => {
  let attempts = 0;
  const { store, settled, lines, start } = setUp({
    async *publish(batches) {
      attempts += 1;
      for await (const { batchId } of batches) {
        const outcome = attempts === 1 ? BatchOutcome.UNSPECIFIED : BatchOutcome.QUARANTINED;
        yield { batchId, outcome, detail: "the chain is broken" };
      }
    },
  });
  await store.save([batch(1)]);
  await using _ = start();
  await until(() => settled.length === 1);
  assert.equal(attempts, 2);
  assert.ok(lines.some((line) => line.includes('"level":"error"') && line.includes("the chain is broken")));
});

test("stops in the middle of a stream", async () => {
  let ended = false;
  const { store, start } = setUp({
    async *publish(batches, signal) {
      const aborted = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
      try {
        for await (const { batchId } of batches) {
          await aborted;
          yield { batchId, outcome: BatchOutcome.ACCEPTED, detail: "" };
        }
      } finally {
        ended = true;
      }
    },
  });
  await store.save([batch(1)]);
  const publisher = start();
  await setImmediate();
  await publisher[Symbol.asyncDispose]();
  assert.ok(ended);
});
