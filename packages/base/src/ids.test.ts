import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { isServiceError } from "./errors.ts";
import { isId, newId, parseId } from "./ids.ts";

const instant = fc.nat({ max: 2 ** 47 });
const entropy = fc.uint8Array({ minLength: 10, maxLength: 10 });

test("ids sort by the time they were made, whatever their random part", () => {
  fc.assert(
    fc.property(instant, instant, entropy, entropy, (one, other, a, b) => {
      fc.pre(one < other);
      assert.ok(newId("vm", one, () => a) < newId("vm", other, () => b));
    }),
  );
});

test("every time and random part has an id of its own, which reads back", () => {
  fc.assert(
    fc.property(instant, instant, entropy, entropy, (one, other, a, b) => {
      const [first, second] = [newId("asset", one, () => a), newId("asset", other, () => b)];
      assert.equal(first === second, one === other && Buffer.from(a).equals(Buffer.from(b)));
      assert.equal(parseId("asset", first, "asset_id"), first);
      assert.equal(isId("app", first), false);
    }),
  );
});

test("what is no id of the kind is refused, naming the field and quoting little", () => {
  const good = newId("vm");
  for (const bad of [
    "",
    "vm_",
    good.slice(0, -1),
    `${good}0`,
    good.toUpperCase(),
    `${good}\n`,
    newId("app"),
    `../${good}`,
  ]) {
    assert.throws(
      () => parseId("vm", bad, "vm_id"),
      (error: unknown) => isServiceError(error, "INVALID_REQUEST") && error.message.startsWith("vm_id: "),
      JSON.stringify(bad),
    );
  }
  assert.throws(
    () => parseId("vm", "x".repeat(10_000), "vm_id"),
    (error: unknown) => error instanceof Error && error.message.length < 200,
  );
});
