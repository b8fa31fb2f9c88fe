import assert from "node:assert/strict";
import { test } from "node:test";
import { mib } from "@unkey/base";
import { choosePartLayers } from "./parts.ts";

const layersOf = (...sizes: readonly number[]) => sizes.map((sizeBytes, index) => ({ digest: `${index}`, sizeBytes }));

test("large layers become parts", () => {
  assert.deepEqual(choosePartLayers(layersOf(100 * mib, 4 * mib - 1, 0, 4 * mib, 200 * mib)), new Set(["4", "0", "3"]));
  assert.deepEqual(choosePartLayers([]), new Set());
});

test("of many, the eight largest do; of equal ones the lower", () => {
  const chosen = choosePartLayers(layersOf(...[5, 9, 5, 5, 8, 7, 6, 9, 9, 9, 9].map((size) => size * mib)));
  assert.deepEqual(
    [...chosen].map(Number).toSorted((a, b) => a - b),
    [1, 4, 5, 6, 7, 8, 9, 10],
  );
  const equal = choosePartLayers(layersOf(...Array.from({ length: 12 }, () => 5 * mib)));
  assert.deepEqual([...equal], ["0", "1", "2", "3", "4", "5", "6", "7"]);
});

test("a layer that an image has twice counts once", () => {
  const [base = { digest: "", sizeBytes: 0 }, other = base] = layersOf(10 * mib, 11 * mib);
  assert.deepEqual([...choosePartLayers([base, other, base])], ["1", "0"]);
});
