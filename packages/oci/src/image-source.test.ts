import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { type Digest, digestOf } from "./digest.ts";
import { ociConfigType, ociLayerType } from "./documents.ts";
import { type ImageSource, resolveImage } from "./image-source.ts";
import { defaultImageLimits } from "./layer/limits.ts";

const platform = { os: "linux", architecture: "amd64", variant: "" };
const [a, b, x, y] = ["a", "b", "x", "y"].map((name) => digestOf(Buffer.from(name))) as [
  Digest,
  Digest,
  Digest,
  Digest,
];

function resolved(layers: readonly Digest[], diffIds: readonly Digest[]) {
  const config = { os: "linux", architecture: "amd64", config: {}, rootfs: { type: "layers", diff_ids: diffIds } };
  const descriptor = { sizeBytes: 1, annotations: {}, platform: undefined };
  const source = {
    name: "registry.test/app",
    config: async () => Buffer.from(JSON.stringify(config)),
  } as unknown as ImageSource;
  const manifest = {
    kind: "manifest",
    mediaType: "",
    config: { ...descriptor, mediaType: ociConfigType, digest: x },
    layers: layers.map((digest) => ({ ...descriptor, mediaType: ociLayerType, digest })),
  } as const;
  const { signal } = new AbortController();
  return resolveImage(source, { digest: x, manifest }, platform, defaultImageLimits, signal);
}

test("a layer that an image has twice is unpacked to one thing", async () => {
  const image = await resolved([a, b, a], [x, y, x]);
  assert.deepEqual(
    image.layers.map(({ diffId }) => diffId),
    [x, y, x],
  );
  // Taken, the second claim would show as damage of the cached layer, which every tenant would then have to fetch again.
  await assert.rejects(resolved([a, b, a], [x, y, y]), (error) => {
    assert.ok(isServiceError(error, "IMAGE_MANIFEST_INVALID"), String(error));
    assert.match(error.message, /two things about the layer/);
    return true;
  });
});
