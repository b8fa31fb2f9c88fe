import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { bearerToken, digestOfSecret, newApiKeySecret, sameDigest } from "./api-key.ts";

test("a new secret carries its prefix and 256 bits, and is recognised by its digest alone", () => {
  const secret = newApiKeySecret(randomBytes);
  assert.match(secret, /^unkey_[0-9a-f]{64}$/);
  const digest = digestOfSecret(secret);
  assert.ok(digest);
  assert.ok(secret.includes(digest.lookup));
  assert.equal(digest.lookup.length, 16);
  assert.ok(sameDigest(digest.sha256, digestOfSecret(secret)!.sha256));
  assert.ok(!sameDigest(digest.sha256, digestOfSecret(newApiKeySecret(randomBytes))!.sha256));
  assert.ok(!sameDigest(digest.sha256, digest.sha256.subarray(1)));
});

test("what is no secret has no digest", () => {
  for (const text of ["", "unkey_", `unkey_${"g".repeat(64)}`, `unkey_${"a".repeat(63)}`, `x${"a".repeat(69)}`]) {
    assert.equal(digestOfSecret(text), undefined, text);
  }
});

test("a bearer token is read as RFC 6750 writes it", () => {
  assert.equal(bearerToken("Bearer abc"), "abc");
  assert.equal(bearerToken("bearer abc"), "abc");
  for (const header of [
    null,
    "",
    "Bearer",
    "Bearer ",
    "Bearer a b",
    "Basic abc",
    `Bearer ${"a".repeat(513)}`,
    "Bearer a\n",
  ]) {
    assert.equal(bearerToken(header), undefined, String(header));
  }
});
