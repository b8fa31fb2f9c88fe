import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, type TestContext, test } from "node:test";
import { type ErrorReason, isServiceError } from "@unkey/base";
import { digestOf } from "../digest.ts";
import { ociIndexType, ociManifestType } from "../documents.ts";
import { resolveImage, resolveManifest } from "../image-source.ts";
import { defaultImageLimits } from "../layer/limits.ts";
import { assembleImage } from "../layout/assemble-image.ts";
import { formatPlatform, hostPlatform, type Platform } from "../platform.ts";
import { parseImageReference } from "../reference.ts";
import { fetchLayers } from "../testing/fetch-layers.ts";
import {
  needsRegistry,
  pushBlob,
  pushLayout,
  pushManifest,
  startTestRegistry,
  type TestRegistry,
  testLogin,
} from "../testing/test-registry.ts";
import { type ImageOptions, RegistryClient } from "./registry-client.ts";

const signal = new AbortController().signal;
const otherPlatform: Platform = {
  os: "linux",
  architecture: hostPlatform().architecture === "amd64" ? "arm64" : "amd64",
  variant: "",
};

async function temporary(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "oci-registry-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function layout(directory: string, text = "hello", platform = hostPlatform()): Promise<string> {
  const path = join(directory, `layout-${text}-${platform.architecture}`);
  await assembleImage({
    directory: path,
    platform,
    files: [{ path: "hello", content: text }],
    config: { Cmd: ["/hello"] },
  });
  return path;
}

async function pull(reference: string, directory: string, options: ImageOptions = {}) {
  await using client = new RegistryClient();
  const source = client.image(parseImageReference(reference), options);
  const resolved = await resolveManifest(source, hostPlatform(), signal);
  const image = await resolveImage(source, resolved, hostPlatform(), defaultImageLimits, signal);
  const layers = await fetchLayers(source, image, directory, { signal });
  return { image, layers };
}

const fails = (reason: ErrorReason, words: RegExp) => (error: unknown) => {
  assert.ok(isServiceError(error, reason), `${String(error)} is not ${reason}`);
  assert.match(error.message, words);
  return true;
};

describe("a registry open to all", { skip: needsRegistry }, () => {
  let registry: TestRegistry;
  before(async () => {
    registry = await startTestRegistry();
  });
  after(() => registry[Symbol.asyncDispose]());

  test("an image is pulled by tag and by digest", async (context) => {
    const directory = await temporary(context);
    const source = await layout(directory);
    const pushed = await pushLayout({ layout: source, host: registry.host, repository: "team/app", tag: "v1" });
    const byTag = await pull(`${registry.host}/team/app:v1`, directory);
    assert.equal(byTag.image.manifestDigest, pushed.digest);
    assert.deepEqual(byTag.image.config.argv, ["/hello"]);
    assert.equal(digestOf(await readFile(byTag.layers[0]?.path ?? "")), byTag.layers[0]?.digest);
    await rm(byTag.layers[0]?.path ?? "");
    const byDigest = await pull(`${registry.host}/team/app@${pushed.digest}`, directory);
    assert.equal(byDigest.image.manifestDigest, pushed.digest);
  });

  test("an image that skopeo pushed in Docker's format is pulled", {
    skip: !existsSync("/usr/bin/skopeo") && "skopeo is not installed",
  }, async (context) => {
    const directory = await temporary(context);
    const source = await layout(directory);
    execFileSync(
      "skopeo",
      [
        "copy",
        "--insecure-policy",
        "--dest-tls-verify=false",
        "--format=v2s2",
        `oci:${source}`,
        `docker://${registry.host}/docker/app:1`,
      ],
      { stdio: "pipe" },
    );
    const { image, layers } = await pull(`${registry.host}/docker/app:1`, directory);
    assert.match(image.layers[0]?.descriptor.mediaType ?? "", /docker/);
    assert.equal(layers.length, 1);
  });

  test("an index leads to this platform's image; a missing platform lists those on offer", async (context) => {
    const directory = await temporary(context);
    const members = [];
    for (const platform of [otherPlatform, hostPlatform()]) {
      const source = await layout(directory, `for-${platform.architecture}`, platform);
      const { mediaType, digest, sizeBytes } = await pushLayout({
        layout: source,
        host: registry.host,
        repository: "multi",
        tag: platform.architecture,
      });
      members.push({
        mediaType,
        digest,
        size: sizeBytes,
        platform: { os: platform.os, architecture: platform.architecture },
      });
    }
    const attestation = { ...members[0], platform: { os: "unknown", architecture: "unknown" } };
    const index = (manifests: unknown[]) =>
      Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: ociIndexType, manifests }));
    const place = { host: registry.host, repository: "multi" };
    await pushManifest({ ...place, tag: "both" }, ociIndexType, index([...members, attestation]));
    await pushManifest({ ...place, tag: "other" }, ociIndexType, index([members[0], attestation]));

    const { image } = await pull(`${registry.host}/multi:both`, directory);
    assert.equal(image.manifestDigest, members[1]?.digest);
    const offered = formatPlatform(otherPlatform);
    await assert.rejects(
      pull(`${registry.host}/multi:other`, directory),
      fails("IMAGE_PLATFORM_UNAVAILABLE", new RegExp(`offers ${offered};`)),
    );
    // A single manifest says its platform only in its config.
    await assert.rejects(
      pull(`${registry.host}/multi:${otherPlatform.architecture}`, directory),
      fails(
        "IMAGE_PLATFORM_UNAVAILABLE",
        new RegExp(`is for ${offered}; this platform runs ${formatPlatform(hostPlatform())}`),
      ),
    );
  });

  test("an unknown image, tag and digest", async (context) => {
    const directory = await temporary(context);
    const source = await layout(directory);
    await pushLayout({ layout: source, host: registry.host, repository: "known", tag: "v1" });
    for (const reference of ["unknown", "known:v2", `known@sha256:${"0".repeat(64)}`]) {
      await assert.rejects(
        pull(`${registry.host}/${reference}`, directory),
        fails("IMAGE_NOT_FOUND", /is not in the registry/),
      );
    }
  });

  test("what is no container image", async (context) => {
    const directory = await temporary(context);
    const place = { host: registry.host, repository: "artifact" };
    const blob = Buffer.from("{}");
    const descriptor = { mediaType: "application/vnd.example+json", digest: digestOf(blob), size: blob.length };
    await pushBlob(place, descriptor.digest, blob);
    const manifest = { schemaVersion: 2, mediaType: ociManifestType, config: descriptor, layers: [descriptor] };
    await pushManifest({ ...place, tag: "v1" }, ociManifestType, Buffer.from(JSON.stringify(manifest)));
    await assert.rejects(pull(`${registry.host}/artifact:v1`, directory), fails("IMAGE_UNSUPPORTED", /vnd.example/));
  });

  test("a host without a registry", async (context) => {
    const directory = await temporary(context);
    await assert.rejects(pull("127.0.0.1:1/app", directory), fails("REGISTRY_UNAVAILABLE", /cannot be reached/));
    assert.deepEqual(await readdir(directory), []);
  });
});

describe("a registry with a password", { skip: needsRegistry }, () => {
  let registry: TestRegistry;
  before(async () => {
    registry = await startTestRegistry({ login: true });
  });
  after(() => registry[Symbol.asyncDispose]());

  test("takes the right login and refuses none and a wrong one, without naming the password", async (context) => {
    const directory = await temporary(context);
    const source = await layout(directory);
    await pushLayout({ layout: source, host: registry.host, repository: "private", tag: "v1", login: testLogin });
    const reference = `${registry.host}/private:v1`;
    const { layers } = await pull(reference, directory, { credentials: testLogin });
    assert.equal(layers.length, 1);
    await assert.rejects(pull(reference, directory), fails("REGISTRY_CREDENTIALS_REQUIRED", /without a login/));
    await assert.rejects(
      pull(reference, directory, { credentials: { username: "tester", password: "wrong-pass" } }),
      (error) =>
        fails("REGISTRY_CREDENTIALS_REJECTED", /refuses the user name or password/)(error) &&
        !/wrong-pass/.test(String(error)),
    );
  });
});
