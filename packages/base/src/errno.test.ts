import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { isErrno } from "./errno.ts";

test("a refusal of the operating system is known by its code", () => {
  const refused = (): void => assert.ok(readFileSync("/") && false);
  assert.throws(refused, (error) => isErrno(error, "EISDIR") && isErrno(error, "ENOENT", "EISDIR"));
  assert.throws(refused, (error) => !isErrno(error, "ENOENT") && !isErrno(error, "ENOENT", "EEXIST"));
});

test("whatever else is thrown is none", () => {
  for (const thrown of [undefined, null, "ENOENT", { code: "ENOENT" }, new Error("ENOENT")]) {
    assert.ok(!isErrno(thrown, "ENOENT"));
  }
});
