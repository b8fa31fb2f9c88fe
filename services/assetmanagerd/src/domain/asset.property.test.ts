import assert from "node:assert/strict";
import { test } from "node:test";
import { type AssetId, newId } from "@unkey/base";
import * as fc from "fast-check";
import { type Asset, canonicalLabels, parseDigest, toMark, toSweep } from "./asset.ts";

const tenant = newId("tenant");
const anyAsset: fc.Arbitrary<Asset> = fc.record({
  id: fc.uuid().map((text) => text as unknown as AssetId),
  owner: fc.constantFrom(tenant, "" as const),
  name: fc.string(),
  kind: fc.constantFrom("rootfs" as const, "kernel" as const),
  state: fc.constantFrom("available" as const, "deleting" as const, "error" as const),
  digest: fc.constant(`sha256:${"0".repeat(64)}` as const),
  sizeBytes: fc.nat(),
  labels: fc.constant({}),
  createdAtMs: fc.nat(),
  lastUsedAtMs: fc.nat({ max: 1000 }),
  leaseCount: fc.nat({ max: 2 }),
  markedBy: fc.option(fc.nat({ max: 10 }), { nil: undefined }),
});
const anyRules = fc.record({ pass: fc.nat({ max: 12 }), nowMs: fc.nat({ max: 2000 }), graceMs: fc.nat({ max: 500 }) });

test("a leased asset is neither marked nor swept, whatever the clock says", () => {
  fc.assert(
    fc.property(fc.array(anyAsset), anyRules, (assets, rules) => {
      const touched = [...toMark(assets, rules), ...toSweep(assets, rules)];
      return touched.every((asset) => asset.leaseCount === 0);
    }),
  );
});

test("nothing is swept that an earlier pass did not mark", () => {
  fc.assert(
    fc.property(fc.array(anyAsset), anyRules, (assets, rules) => {
      const marked = new Set(toMark(assets, rules));
      return toSweep(assets, rules).every(
        (asset) => asset.markedBy !== undefined && asset.markedBy < rules.pass && !marked.has(asset),
      );
    }),
  );
});

test("the platform's assets go only when they are given up", () => {
  fc.assert(
    fc.property(fc.array(anyAsset), anyRules, (assets, rules) =>
      [...toMark(assets, rules), ...toSweep(assets, rules)].every(
        (asset) => asset.owner !== "" || asset.state === "deleting",
      ),
    ),
  );
});

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
