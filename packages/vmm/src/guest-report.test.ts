import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { foldControlLine, type GuestReport } from "./guest-report.ts";

const fold = (...lines: string[]): GuestReport => lines.reduce(foldControlLine, {});

test("the lines of an init add up to a report", () => {
  assert.deepEqual(
    fold('{"type":"started","uptimeSeconds":1.25}', '{"type":"stopping"}', '{"type":"exited","signal":15}'),
    { startedAtUptimeSeconds: 1.25, stopping: true, exited: { signal: 15 } },
  );
  assert.deepEqual(fold('{"type":"failed","step":"base","reason":"no such device"}'), {
    failed: { step: "base", reason: "no such device" },
  });
  assert.deepEqual(fold('{"type":"exited","code":0}'), { exited: { code: 0 } });
});

test("the first word counts", () => {
  assert.deepEqual(fold('{"type":"exited","code":1}', '{"type":"exited","code":0}'), { exited: { code: 1 } });
});

test("what no init says changes nothing", () => {
  for (const line of [
    "",
    "null",
    "[]",
    '"started"',
    "{",
    '{"type":"exited"}',
    '{"type":"exited","code":256}',
    '{"type":"exited","code":-1}',
    '{"type":"exited","code":"0"}',
    '{"type":"started","uptimeSeconds":"1"}',
    '{"type":"started","uptimeSeconds":-1}',
    '{"type":"failed","step":1,"reason":2}',
    '{"type":"unheard of"}',
    `{"type":"stopping","pad":"${"x".repeat(5000)}"}`,
  ]) {
    assert.deepEqual(fold(line), {}, line);
  }
});

test("a guest's words are kept short", () => {
  const failed = fold(JSON.stringify({ type: "failed", step: "s".repeat(2000), reason: "r".repeat(2000) })).failed;
  assert.equal(failed?.step.length, 1024);
  assert.equal(failed?.reason.length, 1024);
});

test("no line makes it throw, and an unchanged report is the same object", () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.json(),
        fc.jsonValue().map((value) => JSON.stringify(value)),
      ),
      (line) => {
        const before: GuestReport = { exited: { code: 1 } };
        const after = foldControlLine(before, line);
        return after === before || JSON.stringify(after) !== JSON.stringify(before);
      },
    ),
  );
});
