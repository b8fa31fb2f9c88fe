import assert from "node:assert/strict";
import { test } from "node:test";
import { FrameOrder, reorderFrames } from "./frame-order.ts";

test("acknowledges only what is contiguous, in whatever order it came", () => {
  const order = new FrameOrder();
  for (const [seq, contiguous] of [
    [2, 0],
    [3, 0],
    [1, 3],
    [5, 3],
    [3, 3],
    [4, 5],
  ] as const) {
    order.note(1n, seq, seq * 100);
    assert.equal(order.contiguous, contiguous);
  }
  assert.ok(order.has(1n, 5) && order.has(1n, 1));
  assert.ok(!order.has(1n, 6) && !order.has(2n, 1));
});

test("a hole that nobody fills stops nothing for ever", () => {
  const order = new FrameOrder();
  order.note(1n, 1, 0);
  for (let seq = 3; seq <= 3 + reorderFrames; seq++) order.note(1n, seq, seq * 100);
  assert.equal(order.contiguous, 3 + reorderFrames);
});

test("a log that was lost does not wait for what was confirmed to its predecessor", () => {
  const order = new FrameOrder();
  order.note(1n, 50_001, 0);
  assert.equal(order.contiguous, 50_001);
});

test("a new epoch counts from the beginning", () => {
  const order = new FrameOrder();
  order.note(1n, 1, 0);
  order.note(2n, 1, 100);
  order.note(2n, 2, 200);
  assert.equal(order.contiguous, 2);
  assert.equal(FrameOrder.restore(JSON.parse(JSON.stringify(order.snapshot()))).contiguous, 2);
});

test("remembers when the host was heard", () => {
  const order = new FrameOrder();
  for (const atMs of [100, 300, 200]) order.note(1n, atMs / 100, atMs);
  assert.ok(order.heardBetween(100, 300));
  assert.ok(!order.heardBetween(200, 300));
  assert.ok(!order.heardBetween(300, 1000));
});
