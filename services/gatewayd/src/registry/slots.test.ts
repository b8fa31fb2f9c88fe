import assert from "node:assert/strict";
import { test } from "node:test";
import { SharedSlots } from "./slots.ts";

/** Takes without waiting for it: what has been granted shows after the microtasks. */
async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

test("one key takes its part, and the others still find room", async () => {
  const slots = new SharedSlots(3, 2);
  const granted: string[] = [];
  const held = new Map<string, Disposable>();
  for (const name of ["a1", "a2", "a3", "b1", "b2"]) {
    const take = async () => {
      const slot = await slots.take(name.slice(0, 1));
      granted.push(name);
      held.set(name, slot);
    };
    void take();
  }
  await settle();
  assert.deepEqual(granted, ["a1", "a2", "b1"]);
  held.get("a1")?.[Symbol.dispose]();
  await settle();
  assert.equal(granted.length, 4);
  for (const name of ["a2", "b1"]) held.get(name)?.[Symbol.dispose]();
  await settle();
  assert.deepEqual(granted.toSorted(), ["a1", "a2", "a3", "b1", "b2"]);
});
