import assert from "node:assert/strict";
import { test } from "node:test";
import { assert as check, nat, property } from "fast-check";
import { byteRange, chunkRange } from "./byte-range.ts";

test("ranges of RFC 9110", () => {
  assert.deepEqual(byteRange("bytes=0-9", 100), { start: 0, end: 10 });
  assert.deepEqual(byteRange("bytes=90-", 100), { start: 90, end: 100 });
  assert.deepEqual(byteRange("bytes=-10", 100), { start: 90, end: 100 });
  assert.deepEqual(byteRange("bytes=-200", 100), { start: 0, end: 100 });
  assert.deepEqual(byteRange("bytes=95-200", 100), { start: 95, end: 100 });
  for (const refused of ["bytes=100-", "bytes=5-4", "bytes=-0", "bytes=200-300"]) {
    assert.equal(byteRange(refused, 100), "unsatisfiable", refused);
  }
  assert.equal(byteRange("bytes=0-", 0), "unsatisfiable");
  for (const whole of [undefined, "", "items=0-1", "bytes=0-1,3-4", "bytes=-", "bytes=a-b"]) {
    assert.equal(byteRange(whole, 100), undefined, String(whole));
  }
});

test("a satisfiable range lies within the resource", () => {
  check(
    property(nat(), nat(), nat(), (first, last, size) => {
      const range = byteRange(`bytes=${first}-${last}`, size);
      if (range === undefined || range === "unsatisfiable") return true;
      return range.start >= 0 && range.start < range.end && range.end <= size;
    }),
  );
});

test("ranges of chunks", () => {
  assert.deepEqual(chunkRange("0-0"), { start: 0, end: 1 });
  assert.deepEqual(chunkRange("500-799"), { start: 500, end: 800 });
  for (const none of ["bytes 0-1/2", "0", "1-0", "-1", "0-", " 0-1", "99999999999999999-1"]) {
    assert.equal(chunkRange(none), undefined, none);
  }
});
