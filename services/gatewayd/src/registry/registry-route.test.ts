import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { isTag, routeOf } from "./registry-route.ts";

test("paths are read from their end: a repository's name may hold slashes and the words of the paths", () => {
  const digest = `sha256:${"0".repeat(64)}`;
  assert.deepEqual(routeOf("/v2/"), { kind: "base" });
  assert.deepEqual(routeOf("/v2"), { kind: "base" });
  assert.deepEqual(routeOf("/v2/_catalog"), { kind: "catalog" });
  assert.deepEqual(routeOf("/v2/a/b/blobs/uploads/"), { kind: "uploads", repository: "a/b" });
  assert.deepEqual(routeOf("/v2/a/blobs/uploads"), { kind: "uploads", repository: "a" });
  assert.deepEqual(routeOf("/v2/a/blobs/uploads/x1"), { kind: "upload", repository: "a", uploadId: "x1" });
  assert.deepEqual(routeOf(`/v2/a/blobs/${digest}`), { kind: "blob", repository: "a", digest });
  assert.deepEqual(routeOf(`/v2/a/blobs/${encodeURIComponent(digest)}`), { kind: "blob", repository: "a", digest });
  assert.deepEqual(routeOf("/v2/a/manifests/b/manifests/latest"), {
    kind: "manifest",
    repository: "a/manifests/b",
    reference: "latest",
  });
  assert.deepEqual(routeOf("/v2/a/tags/list/tags/list"), { kind: "tags", repository: "a/tags/list" });
  assert.deepEqual(routeOf(`/v2/a/referrers/${digest}`), { kind: "referrers", repository: "a", digest });
});

const badNames = [
  "A",
  "a//b",
  "/a",
  "a/",
  "-a",
  "a-",
  "a..b",
  "a___b",
  "ä",
  "a b",
  "..",
  "a%2f..%2fb",
  "x".repeat(256),
];
for (const name of badNames) {
  test(`no repository is called ${JSON.stringify(name.slice(0, 20))}`, () => {
    assert.throws(
      () => routeOf(`/v2/${name}/tags/list`),
      (error) => isServiceError(error, "REPOSITORY_NAME_INVALID"),
    );
  });
}

for (const path of ["/v2/a", "/v2/a/tags", "/v2/a/blobs/", "/v2/%zz/tags/list", "/v2/a/manifests/", "/v2//"]) {
  test(`${path} leads nowhere`, () => {
    assert.throws(
      () => routeOf(path),
      (error) => isServiceError(error, "ROUTE_UNKNOWN"),
    );
  });
}

test("tags", () => {
  for (const tag of ["latest", "1.0_x-Y", "_", "x".repeat(128)]) assert.ok(isTag(tag), tag);
  for (const tag of ["", "-a", ".a", "a:b", "a/b", "x".repeat(129), "ä"]) assert.ok(!isTag(tag), tag);
});
