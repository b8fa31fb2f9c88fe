import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { appNameFrom, isAppName } from "./app-name.ts";

test("an app's name is a label of a host name that begins with a letter", () => {
  for (const name of ["a", "web", "web-2", "a--b", "a".repeat(63)]) assert.ok(isAppName(name), name);
  for (const text of ["", "2web", "-web", "web-", "Web", "we_b", "we.b", "web\n", "wéb", "a".repeat(64)]) {
    assert.ok(!isAppName(text), text);
  }
});

test("what something is called becomes the nearest name", () => {
  for (const [text, name] of [
    ["web-app", "web-app"],
    ["B_c.d", "b-c-d"],
    ["123app", "app"],
    ["My Shop (2)", "my-shop-2"],
    ["app-", "app"],
    ["---", undefined],
    ["123", undefined],
    ["", undefined],
    ["a".repeat(80), "a".repeat(63)],
    [`${"a".repeat(62)}-b`, "a".repeat(62)],
  ] as const) {
    assert.equal(appNameFrom(text), name, text);
  }
});

test("whatever comes out is a name, and a name stays as it is", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: fc.constantFrom("a", "Z", "0", "9", "-", "_", ".", " ", "é", "/", ":"), maxLength: 100 }),
      (text) => {
        const name = appNameFrom(text);
        return name === undefined ? !/[a-z]/i.test(text) : isAppName(name) && appNameFrom(name) === name;
      },
    ),
  );
});
