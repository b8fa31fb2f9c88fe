import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";
import { ConfigError, Settings } from "./settings.ts";

const settingsOf = (env: Record<string, string>) => new Settings("billing-aggregator", env);
const key = (name: string) => `UNKEY_BILLING_AGGREGATOR_${name}`;

function mistakesOf(settings: Settings): readonly string[] {
  try {
    settings.done();
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    return error.mistakes;
  }
  return [];
}

test("every kind of setting is read", () => {
  const settings = settingsOf({
    [key("NAME")]: " x ",
    [key("COUNT")]: "7",
    [key("PORT")]: "0",
    [key("EVERY")]: "5m",
    [key("SIZE")]: "2GiB",
    [key("DIR")]: "/a/../b",
    [key("ON")]: "true",
    [key("MODE")]: "fast",
    [key("HOSTS")]: "a, b",
    [key("PEER")]: "[::1]:8081",
    [key("OTHER")]: "file:/run/x.json",
    UNKEY_BILLAGED_PORT: "not ours",
  });
  const limits = { min: 0, max: Number.MAX_SAFE_INTEGER };
  assert.equal(settings.string("NAME"), "x");
  assert.equal(settings.int("COUNT", { min: 1, max: 9 }), 7);
  assert.equal(settings.port("PORT"), 0);
  assert.equal(settings.durationMs("EVERY", limits), 300_000);
  assert.equal(settings.bytes("SIZE", limits), 2 * 1024 ** 3);
  assert.equal(settings.path("DIR"), "/b");
  assert.equal(settings.boolean("ON"), true);
  assert.equal(settings.oneOf("MODE", ["slow", "fast"]), "fast");
  assert.deepEqual(settings.list("HOSTS"), ["a", "b"]);
  assert.deepEqual(settings.address("PEER"), { host: "::1", port: 8081 });
  assert.deepEqual(settings.address("OTHER"), { file: "/run/x.json" });
  assert.equal(settings.string("ABSENT", { default: undefined }), undefined);
  assert.deepEqual(mistakesOf(settings), []);
});

test("all mistakes are told at once, unknown settings among them", () => {
  const settings = settingsOf({
    [key("COUNT")]: "10",
    [key("HEX")]: "0x10",
    [key("EVERY")]: "5 minutes",
    [key("SIZE")]: "much",
    [key("DIR")]: "relative",
    [key("ON")]: "yes",
    [key("MODE")]: "medium",
    [key("HOSTS")]: "a,,b",
    [key("PEER")]: "localhost",
    [key("NAME")]: "UPPER",
    [key("TYPO")]: "1",
  });
  settings.string("REQUIRED");
  settings.string("NAME", { pattern: /^[a-z]+$/ });
  settings.int("COUNT", { min: 1, max: 9 });
  settings.int("HEX", { min: 1, max: 99 });
  settings.durationMs("EVERY", { min: 0, max: 1e9 });
  settings.bytes("SIZE", { min: 0, max: 1e9 });
  settings.path("DIR");
  settings.boolean("ON");
  settings.oneOf("MODE", ["slow", "fast"]);
  settings.list("HOSTS");
  settings.address("PEER");
  settings.mistake("A and B contradict each other");
  const mistakes = mistakesOf(settings);
  assert.equal(mistakes.length, 13);
  for (const name of ["REQUIRED", "NAME", "COUNT", "HEX", "EVERY", "SIZE", "DIR", "ON", "MODE", "HOSTS", "PEER"]) {
    assert.ok(
      mistakes.some((mistake) => mistake.startsWith(key(name))),
      `nothing about ${name}`,
    );
  }
  assert.match(mistakes.at(-1) ?? "", /TYPO is not a setting of billing-aggregator/);
});

test("a secret comes from a file that only its owner can read, and shows itself nowhere", (t) => {
  const dir = mkdtempSync(join(tmpdir(), "settings-"));
  t.after(() => rmSync(dir, { recursive: true }));
  const file = join(dir, "token");
  writeFileSync(file, "hunter2\n", { mode: 0o600 });
  const settings = settingsOf({ [key("TOKEN_FILE")]: file });
  const secret = settings.secretFile("TOKEN");
  assert.deepEqual(mistakesOf(settings), []);
  assert.equal(secret.reveal(), "hunter2");
  for (const shown of [
    JSON.stringify({ secret }),
    inspect({ secret }),
    secret.toString(),
    inspect(secret, { showHidden: true }),
  ]) {
    assert.doesNotMatch(shown, /hunter2/);
  }

  chmodSync(file, 0o640);
  const open = settingsOf({ [key("TOKEN_FILE")]: file });
  open.secretFile("TOKEN");
  assert.match(mistakesOf(open)[0] ?? "", /can be read by others/);
});
