import assert from "node:assert/strict";
import { test } from "node:test";
import { elementsOf, textOf, textsOf } from "./s3-answers.ts";

test("elements and texts are found by their names", () => {
  const xml = "<List><C><Key>a&amp;b</Key></C><C><Key>c</Key></C><Key>d</Key><C><Key>e</Key></List>";
  assert.deepEqual(elementsOf(xml, "C"), ["<Key>a&amp;b</Key>", "<Key>c</Key>"]);
  assert.deepEqual(textsOf(xml, "Key"), ["a&b", "c", "d", "e"]);
  assert.equal(textOf(xml, "Code"), undefined);
  assert.deepEqual(elementsOf("</C><C>", "C"), []);
});

test("eight MiB of elements that never end are read in one pass", () => {
  // A search for the end from each beginning would look at a million times as much: it would not end.
  assert.deepEqual(elementsOf("<Contents>".repeat(800_000), "Contents"), []);
  assert.deepEqual(textsOf("<Key>".repeat(1_600_000), "Key"), []);
});
