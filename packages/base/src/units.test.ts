import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { isServiceError } from "./errors.ts";
import { formatBytes, gib, kib, mib, parseByteSize } from "./units.ts";

test("sizes are read with binary suffixes, in any case", () => {
  const sizes = {
    "0": 0,
    "1048576": mib,
    "512MiB": 512 * mib,
    "1g": gib,
    "64 K": 64 * kib,
    "1.5GiB": 1.5 * gib,
    "7b": 7,
  };
  for (const [text, bytes] of Object.entries(sizes)) assert.equal(parseByteSize(text, "size"), bytes, text);
});

test("what is no whole number of bytes is refused, naming the field", () => {
  for (const text of [
    "",
    "-1",
    "1.5",
    "1e9",
    "12MB",
    "9007199254740993",
    "8388608g",
    "constructor",
    "1constructor",
    "0x10",
  ]) {
    assert.throws(
      () => parseByteSize(text, "--memory"),
      (error: unknown) => isServiceError(error, "INVALID_REQUEST") && error.message.startsWith("--memory: "),
      text,
    );
  }
});

test("what is shown is within a twentieth of a unit of what is meant", () => {
  const units: Readonly<Record<string, number>> = { B: 1, KiB: kib, MiB: mib, GiB: gib, TiB: 1024 * gib };
  fc.assert(
    fc.property(fc.maxSafeNat(), (bytes) => {
      const [number = "", unit = ""] = formatBytes(bytes).split(" ");
      const factor = units[unit] ?? assert.fail(unit);
      assert.ok(Math.abs(Number(number) * factor - bytes) <= 0.0501 * factor, `${bytes} is shown as ${number} ${unit}`);
    }),
  );
});
