import assert from "node:assert/strict";
import { test } from "node:test";
import { untilStopping } from "./until-stopping.ts";

async function* endless() {
  yield 1;
  await new Promise(() => undefined);
}

test("passes on what comes and ends with it", async () => {
  const items = (async function* () {
    yield 1;
    yield 2;
  })();
  assert.deepEqual(await Array.fromAsync(untilStopping(items, new AbortController().signal)), [1, 2]);
});

test("ends while it waits when stopping begins, and at once when it has begun", async () => {
  const stopping = new AbortController();
  const seen: number[] = [];
  for await (const item of untilStopping(endless(), stopping.signal)) {
    seen.push(item);
    stopping.abort();
  }
  assert.deepEqual(seen, [1]);
  assert.deepEqual(await Array.fromAsync(untilStopping(endless(), stopping.signal)), []);
});

test("a failure passes through", async () => {
  const failing = (async function* () {
    yield 1;
    throw new Error("broken stream");
  })();
  await assert.rejects(Array.fromAsync(untilStopping(failing, new AbortController().signal)), /broken stream/);
});
