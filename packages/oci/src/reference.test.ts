import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import * as fc from "fast-check";
import { formatImageReference, parseImageReference } from "./reference.ts";

const sha = `sha256:${"ab".repeat(32)}`;

for (const [written, full] of [
  ["hello", "docker.io/library/hello:latest"],
  ["hello:1.2", "docker.io/library/hello:1.2"],
  ["team/app", "docker.io/team/app:latest"],
  ["docker.io/hello", "docker.io/library/hello:latest"],
  ["index.docker.io/team/app", "docker.io/team/app:latest"],
  ["registry-1.docker.io:443/team/app", "docker.io/team/app:latest"],
  ["ghcr.example:443/a/b", "ghcr.example/a/b:latest"],
  ["ghcr.example:00443/a/b", "ghcr.example/a/b:latest"],
  ["GHCR.example:05000/a/b", "ghcr.example:5000/a/b:latest"],
  ["docker.io:443/hello", "docker.io/library/hello:latest"],
  ["localhost:443/x", "localhost/x:latest"],
  ["registry:443/x", "registry:443/x:latest"],
  ["registry:0443/x", "registry:443/x:latest"],
  ["pushed:443/x", "pushed:443/x:latest"],
  ["0x7f.1:5000/x", "127.0.0.1:5000/x:latest"],
  ["[0:0:0::1]:443/x", "[::1]/x:latest"],
  ["localhost/x", "localhost/x:latest"],
  ["localhost:5000/x", "localhost:5000/x:latest"],
  ["LOCALHOST:5000/x", "localhost:5000/x:latest"],
  ["127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"],
  ["[::1]:5000/x", "[::1]:5000/x:latest"],
  ["ghcr.example/a/b_c/d__e/f-g.h", "ghcr.example/a/b_c/d__e/f-g.h:latest"],
  [`hello@${sha}`, `docker.io/library/hello@${sha}`],
  [`reg.example/hello:v2@${sha}`, `reg.example/hello:v2@${sha}`],
  ["host:5000/name:5000", "host:5000/name:5000"],
] as const) {
  test(`reads ${written} as ${full}`, () => {
    assert.equal(formatImageReference(parseImageReference(written)), full);
    assert.equal(formatImageReference(parseImageReference(full)), full);
  });
}

for (const [written, why] of [
  ["", /empty/],
  ["https://docker.io/hello", /scheme/],
  ["hello world", /white space/],
  ["Hello", /lower case/],
  ["hello:", /not a tag/],
  ["hello:-x", /not a tag/],
  [`hello:${"t".repeat(129)}`, /not a tag/],
  ["hello@sha256:abc", /not a sha256/],
  [`hello@${sha}@${sha}`, /not a sha256/],
  ["localhost:5000/", /missing/],
  ["localhost:99999/x", /not a port/],
  ["host:port/x", /not a registry host/],
  ["-a.b/x", /not a registry host/],
  ["a//b", /component/],
  ["../etc/passwd", /not a registry host/],
  ["a/../b", /component/],
  ["/a", /component/],
  ["a/b/", /component/],
  [`a/${"b".repeat(300)}`, /255/],
] as const) {
  test(`refuses ${JSON.stringify(written.slice(0, 40))} with ${why}`, () => {
    assert.throws(
      () => parseImageReference(written),
      (error) => isServiceError(error, "IMAGE_REFERENCE_INVALID") && why.test(error.message),
    );
  });
}

test("the full form reads back as itself, and no text throws anything but its own error", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[a-z0-9:./@_-]{1,40}$/)), (text) => {
      try {
        const reference = parseImageReference(text);
        assert.deepEqual(parseImageReference(formatImageReference(reference)), reference);
      } catch (error) {
        assert.ok(isServiceError(error, "IMAGE_REFERENCE_INVALID"), String(error));
      }
    }),
    { numRuns: 2000 },
  );
});
