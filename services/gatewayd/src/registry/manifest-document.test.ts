import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { ociIndexType, ociManifestType, parseManifest } from "./manifest-document.ts";

const digest = (digit: string) => `sha256:${digit.repeat(64)}` as const;
const descriptor = (digit: string, more = {}) => ({ mediaType: "x/y", digest: digest(digit), size: 1, ...more });
const parse = (value: unknown, type = ociManifestType) => parseManifest(Buffer.from(JSON.stringify(value)), type);
const base = { schemaVersion: 2, config: descriptor("a", { mediaType: "x/config" }), layers: [] };

test("an image refers to its config and each layer once", () => {
  const layers = [descriptor("b"), descriptor("c"), descriptor("b")];
  const document = parse({ ...base, layers });
  assert.deepEqual(document.blobs, [digest("a"), digest("b"), digest("c")]);
  assert.equal(document.artifactType, "x/config");
  assert.equal(document.mediaType, ociManifestType);
});

test("an index refers to its members and has no artifact type unless it says one", () => {
  const document = parse({ schemaVersion: 2, manifests: [descriptor("d")] }, ociIndexType);
  assert.deepEqual([document.blobs, document.manifests, document.artifactType], [[], [digest("d")], ""]);
});

test("subject, artifact type and annotations are what a list of referrers shows", () => {
  const document = parse({ ...base, subject: descriptor("e"), artifactType: "x/art", annotations: { a: "b" } });
  assert.deepEqual([document.subject, document.artifactType, document.annotations], [digest("e"), "x/art", { a: "b" }]);
});

test("only a layer that says where it is may be missing", () => {
  const foreign = { mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" };
  const urls = { urls: ["https://example.com/x"] };
  assert.deepEqual(parse({ ...base, layers: [descriptor("b", { ...foreign, ...urls })] }).blobs, [digest("a")]);
  assert.equal(parse({ ...base, layers: [descriptor("b", foreign)] }).blobs.length, 2);
  assert.equal(parse({ ...base, layers: [descriptor("b", urls)] }).blobs.length, 2);
});

const refused: Readonly<Record<string, unknown>> = {
  "a text": "x",
  "a list": [],
  "schema 1": { schemaVersion: 1, fsLayers: [] },
  "no schema": { config: base.config, layers: [] },
  "no config": { schemaVersion: 2, layers: [] },
  "no layers": { schemaVersion: 2, config: base.config },
  "an image that is an index too": { ...base, manifests: [] },
  "a type that is not the header's": { ...base, mediaType: ociIndexType },
  "a type that no registry takes": { ...base, mediaType: "text/html" },
  "a layer that is no object": { ...base, layers: [1] },
  "a layer without a digest": { ...base, layers: [{ size: 1 }] },
  "a layer of sha512": { ...base, layers: [{ digest: `sha512:${"0".repeat(128)}`, size: 1 }] },
  "a digest with a path": { ...base, layers: [{ digest: "sha256:../../etc", size: 1 }] },
  "an artifact type without an end": { ...base, artifactType: `x/${"y".repeat(300)}` },
  "annotations of other than texts": { ...base, annotations: { a: 1 } },
  "a subject that is a text": { ...base, subject: digest("a") },
  "1,001 layers": { ...base, layers: Array.from({ length: 1001 }, () => descriptor("b")) },
};
for (const [name, value] of Object.entries(refused)) {
  test(`refused: ${name}`, () => {
    assert.throws(
      () => parse(value),
      (error) => isServiceError(error, "MANIFEST_INVALID"),
    );
  });
}

test("bytes that are no UTF-8 are refused", () => {
  assert.throws(
    () => parseManifest(Buffer.from([0x7b, 0xff, 0x7d]), ociManifestType),
    (error) => isServiceError(error, "MANIFEST_INVALID"),
  );
});
