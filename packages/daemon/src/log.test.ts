import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { test } from "node:test";
import { ServiceError } from "@unkey/base";
import { createLogger, type LogLevel } from "./log.ts";
import { Secret } from "./secret.ts";

function capture(level: LogLevel = "info") {
  const raw: string[] = [];
  const log = createLogger({ level, fields: { service: "metald" }, write: (line) => raw.push(line), nowMs: () => 0 });
  return { log, raw, line: (index: number) => JSON.parse(raw[index] ?? "null") as Record<string, unknown> };
}

test("a line is one JSON object with time, level, message and fields", () => {
  const { log, raw, line } = capture();
  log.child({ vmId: "vm_1" }).info("booted\nwell", { tookMs: 12, count: 9007199254740993n, seen: new Set([1]) });
  log.debug("dropped");
  assert.equal(raw.length, 1);
  assert.equal(raw[0]?.indexOf("\n"), raw[0]!.length - 1);
  assert.deepEqual(line(0), {
    time: "1970-01-01T00:00:00.000Z",
    level: "info",
    message: "booted\nwell",
    service: "metald",
    vmId: "vm_1",
    tookMs: 12,
    count: "9007199254740993",
    seen: [1],
  });
  assert.equal(log.enabled("debug"), false);
  assert.equal(log.enabled("warn"), true);
});

test("an error is written with its chain of causes", () => {
  const { log, line } = capture();
  const error = new ServiceError("NOT_FOUND", "no image", { cause: new Error("404", { cause: new TypeError("bad") }) });
  log.error("failed", { error });
  const { causes, reason, stack } = line(0)["error"] as Record<string, unknown>;
  assert.deepEqual(causes, ["ServiceError: no image", "Error: 404", "TypeError: bad"]);
  assert.equal(reason, "NOT_FOUND");
  assert.match(String(stack), /^TypeError: bad\n/);
});

test("secrets and keys do not get out", () => {
  const { log, raw } = capture();
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const pem = privateKey.export({ type: "pkcs8", format: "pem" });
  log.info("secrets", {
    secret: new Secret("hunter2"),
    deep: [{ privateKey, pem }],
    error: new Error(`bad key ${pem}`),
  });
  assert.doesNotMatch(raw.join(""), /hunter2|MIG|BEGIN/);
  assert.match(raw.join(""), /\[secret\]/);
});

test("hostile fields cost their own line at most", () => {
  const { log, raw, line } = capture();
  const circular: Record<string, unknown> = {};
  circular["self"] = circular;
  log.info("circular", { circular });
  log.info("long", { text: "x".repeat(100_000) });
  log.info("many", { list: Array.from({ length: 100 }, () => "y".repeat(4000)) });
  log.info("bytes", { bytes: new Uint8Array(5) });
  assert.deepEqual(line(0)["unprintableFields"], ["service", "circular"]);
  assert.match(String(line(1)["text"]), /… \(100000 characters\)$/);
  assert.deepEqual(line(2)["oversizeFields"], ["service", "list"]);
  assert.equal(line(3)["bytes"], "(5 bytes)");
  assert.ok(raw.every((text) => text.length < 70_000));
});
