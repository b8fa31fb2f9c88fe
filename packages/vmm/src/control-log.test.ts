import assert from "node:assert/strict";
import { appendFileSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { ControlLog, maxControlLogBytes, readControlLog } from "./control-log.ts";

let dir = "";
let path = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "control-log-"));
  path = join(dir, "control.log");
  writeFileSync(path, "");
});
afterEach(() => rmSync(dir, { recursive: true }));

test("what is appended later arrives by itself, line by line, however it is cut", async () => {
  const lines: string[] = [];
  const { promise, resolve } = Promise.withResolvers<void>();
  const log = new ControlLog(path, {
    line: (line) => {
      lines.push(line);
      if (line === "end") resolve();
    },
    overflow: () => assert.fail(),
  });
  appendFileSync(path, "one\ntw");
  log.read();
  assert.deepEqual(lines, ["one"]);
  for (const piece of ["o\n", "\n", "thr", "ee\ne", "nd\n"]) appendFileSync(path, piece);
  await promise;
  log.close();
  assert.deepEqual(lines, ["one", "two", "", "three", "end"]);
});

test("an overlong line is skipped, the next one counts", () => {
  writeFileSync(path, `${"x".repeat(20_000)}\nshort\nincomplete`);
  assert.deepEqual(readControlLog(path), ["short"]);
});

test("a log beyond its bound is reported once and read no further", () => {
  let overflows = 0;
  const log = new ControlLog(path, { line: () => undefined, overflow: () => overflows++ });
  writeFileSync(path, "x\n".repeat(maxControlLogBytes));
  log.read();
  log.read();
  log.close();
  assert.equal(overflows, 1);
});

test("a link that a hostile monitor put there is not followed", () => {
  symlinkSync(path, join(dir, "link"));
  writeFileSync(path, "secret\n");
  assert.deepEqual(readControlLog(join(dir, "link")), []);
  assert.deepEqual(readControlLog(dir), []);
  assert.deepEqual(readControlLog(join(dir, "missing")), []);
});
