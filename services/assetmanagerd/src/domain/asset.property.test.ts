import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { canonicalLabels, parseDigest } from "./asset.ts";

test("equal labels have one form, different labels have two", () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.string()), fc.dictionary(fc.string(), fc.string()), (a, b) => {
      const reversed = Object.fromEntries(Object.entries(a).toReversed());
      assert.equal(canonicalLabels(a), canonicalLabels(reversed));
      const same = Object.keys(a).length === Object.keys(b).length && Object.entries(a).every(([k, v]) => b[k] === v);
      assert.equal(canonicalLabels(a) === canonicalLabels(b), same);
    }),
  );
});

test("a digest is sha256 and 64 hex digits", () => {
  assert.ok(parseDigest(`sha256:${"0a".repeat(32)}`));
  for (const text of [
    "",
    "sha256:",
    `sha256:${"0A".repeat(32)}`,
    `sha512:${"0".repeat(64)}`,
    `sha256:${"0".repeat(65)}`,
  ]) {
    assert.equal(parseDigest(text), undefined);
  }
});
