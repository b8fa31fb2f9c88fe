import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as settle } from "node:timers/promises";
import { KeyedTurns } from "./keyed-turns.ts";

/** Takes turns and notes who has one. */
function takers() {
  const turns = new KeyedTurns();
  const order: string[] = [];
  const held = new Map<string, Disposable>();
  const ask = async (name: string, keys: string | string[], signal?: AbortSignal) => {
    try {
      held.set(name, await turns.take(keys, signal));
      order.push(name);
    } catch {
      order.push(`${name} gave up`);
    }
  };
  const end = async (name: string) => {
    held.get(name)?.[Symbol.dispose]();
    await settle();
  };
  return { order, ask, end };
}

test("turns of one key come one after the other, those of others side by side", async () => {
  const { order, ask, end } = takers();
  for (const [name, key] of [
    ["x1", "x"],
    ["x2", "x"],
    ["x3", "x"],
    ["y1", "y"],
  ] as const)
    void ask(name, key);
  await settle();
  assert.deepEqual(order, ["x1", "y1"]);
  await end("x1");
  await end("x1"); // twice is once
  assert.deepEqual(order, ["x1", "y1", "x2"]);
  await end("x2");
  assert.deepEqual(order, ["x1", "y1", "x2", "x3"]);
});

test("several keys are one turn, which waits for all of them", async () => {
  const { order, ask, end } = takers();
  for (const [name, keys] of [
    ["x", "x"],
    ["y", "y"],
    ["both", ["x", "y"]],
    ["later", "y"],
  ] as const) {
    void ask(name, typeof keys === "string" ? keys : [...keys]);
  }
  await settle();
  await end("y");
  assert.deepEqual(order, ["x", "y"]);
  await end("x");
  assert.deepEqual(order, ["x", "y", "both"]);
  await end("both");
  assert.deepEqual(order, ["x", "y", "both", "later"]);
});

test("who gives up waits no longer, and nobody overtakes because of it", async () => {
  const { order, ask, end } = takers();
  const impatient = new AbortController();
  void ask("first", "x");
  void ask("impatient", "x", impatient.signal);
  void ask("last", "x");
  await settle();
  impatient.abort(new Error("too long"));
  await settle();
  assert.deepEqual(order, ["first", "impatient gave up"]);
  await end("first");
  assert.deepEqual(order, ["first", "impatient gave up", "last"]);
});

test("a body that throws ends its turn", async () => {
  const turns = new KeyedTurns();
  const failed = turns.run("x", () => Promise.reject(new Error("on purpose")));
  const next = turns.run("x", async () => "next");
  await assert.rejects(failed, /on purpose/);
  assert.equal(await next, "next");
});
