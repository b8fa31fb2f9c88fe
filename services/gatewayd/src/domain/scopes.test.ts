import assert from "node:assert/strict";
import { test } from "node:test";
import { isKnownScope, scopeAllows } from "./scopes.ts";

test("a scope is covered by itself, its resource's wildcard and the wildcard of all", () => {
  const cases: [readonly string[], string, boolean][] = [
    [["apps:read"], "apps:read", true],
    [["apps:read"], "apps:write", false],
    [["apps:*"], "apps:write", true],
    [["apps:*"], "apps:*", true],
    [["apps:read", "apps:write"], "apps:*", false],
    [["*"], "apps:write", true],
    [["*"], "*", true],
    [["apps:*", "vms:*"], "*", false],
    [["app:*"], "apps:read", false],
    [[":*"], "apps:read", false],
    [[], "apps:read", false],
    [["apps:read"], "", false],
  ];
  for (const [granted, wanted, allowed] of cases) {
    assert.equal(scopeAllows(granted, wanted), allowed, `${granted.join(" ")} → ${wanted}`);
  }
});

test("only scopes that some method asks for are known", () => {
  const known = new Set(["apps:read", "apps:write"]);
  for (const scope of ["*", "apps:read", "apps:*"]) assert.ok(isKnownScope(scope, known), scope);
  for (const scope of ["", ":*", "apps", "apps:fly", "vms:*", "**", "a:*"])
    assert.ok(!isKnownScope(scope, known), scope);
});
