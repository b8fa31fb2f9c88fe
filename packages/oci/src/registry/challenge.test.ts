import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { parseChallenges } from "./challenge.ts";

for (const [header, expected] of [
  [undefined, []],
  ["", []],
  ['Basic realm="Registry"', [{ scheme: "basic", parameters: { realm: "Registry" } }]],
  ["Basic", [{ scheme: "basic", parameters: {} }]],
  [
    'Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull,push"',
    [
      {
        scheme: "bearer",
        parameters: { realm: "https://auth.example/token", service: "reg.example", scope: "repository:a/b:pull,push" },
      },
    ],
  ],
  [
    'Negotiate, Basic realm="a \\"b\\"", bearer realm=https://x/y',
    [
      { scheme: "negotiate", parameters: {} },
      { scheme: "basic", parameters: { realm: 'a "b"' } },
      { scheme: "bearer", parameters: { realm: "https://x/y" } },
    ],
  ],
  ['realm="nobody"', []],
] as const) {
  test(`reads ${JSON.stringify(header)}`, () => {
    assert.deepEqual(parseChallenges(header), expected);
  });
}

test("reads any header in bounded time without an exception", () => {
  fc.assert(fc.property(fc.string({ maxLength: 500 }), (text) => Array.isArray(parseChallenges(text))));
  assert.ok(parseChallenges(`Basic ${'a="'.repeat(5000)}`).length < 3);
});
