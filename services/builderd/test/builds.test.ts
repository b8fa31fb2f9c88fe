import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, type TestContext, test } from "node:test";
import { type Build, BuildState } from "@unkey/api/builder";
import { type ErrorReason, isServiceError, newId, ServiceError } from "@unkey/base";
import { type AssembleOptions, assembleImage, exportLayoutArchive, hostPlatform } from "@unkey/oci";
import {
  helloImage,
  needsBusybox,
  needsRegistry,
  pushLayout,
  startTestRegistry,
  type TestRegistry,
  testLogin,
} from "@unkey/oci/testing";
import { build, fromRegistry, fromUpload, startBuilder, statesOf, temporary, upload, uploadParts } from "./harness.ts";

const tenantId = newId("tenant");
const needsErofsUtils = !existsSync("/usr/bin/fsck.erofs") && "erofs-utils is not installed";
const needsAll = needsRegistry || needsErofsUtils || needsBusybox;

function failed(result: Build, reason: ErrorReason, words: RegExp): void {
  assert.equal(result.state, BuildState.FAILED, JSON.stringify(result.failure));
  assert.equal(result.failure?.reason, reason, result.failure?.message ?? "");
  assert.match(result.failure?.message ?? "", words);
  assert.notEqual(result.failure?.nextStep, "");
}

const refused = (reason: ErrorReason) => (error: unknown) => {
  assert.ok(isServiceError(error, reason), `${String(error)} is not ${reason}`);
  return true;
};

/** Pushes an image; answers its reference. */
async function push(
  context: TestContext,
  registry: TestRegistry,
  name: string,
  options: Partial<Omit<AssembleOptions, "directory">> = {},
) {
  const layout = join(await temporary(context), "layout");
  await assembleImage({
    directory: layout,
    files: [{ path: "hello", content: name }],
    config: { Cmd: ["/hello"] },
    ...options,
  });
  const { digest } = await pushLayout({ layout, host: registry.host, repository: name, tag: "v1" });
  return { reference: `${registry.host}/${name}:v1`, digest, layout };
}

describe("builds from a registry", { skip: needsAll }, () => {
  let registry: TestRegistry;
  before(async () => {
    registry = await startTestRegistry();
  });
  after(() => registry[Symbol.asyncDispose]());

  test("an image becomes a registered root filesystem that knows how to be run", async (context) => {
    const builder = await startBuilder(context);
    const layout = join(await temporary(context), "layout");
    await helloImage({ directory: layout });
    const pushed = await pushLayout({ layout, host: registry.host, repository: "hello", tag: "v1" });
    const result = await build(builder, tenantId, fromRegistry(`${registry.host}/hello:v1`));

    assert.equal(result.state, BuildState.COMPLETED, JSON.stringify(result.failure));
    assert.deepEqual(statesOf(result), ["PENDING", "PULLING", "EXTRACTING", "WRITING", "REGISTERING", "COMPLETED"]);
    assert.ok(result.steps.every(({ startedAtMs, endedAtMs }) => endedAtMs >= startedAtMs && startedAtMs > 0n));
    const [, pulling, extracting, , registering] = result.steps;
    assert.ok(pulling !== undefined && pulling.bytesDone === pulling.bytesTotal && pulling.bytesTotal > 1_000_000n);
    assert.ok(
      extracting !== undefined && extracting.bytesDone === extracting.bytesTotal && extracting.bytesTotal > 1_000_000n,
    );
    assert.equal(registering?.bytesDone, result.rootfsBytes);
    assert.equal(result.imageDigest, pushed.digest);
    assert.equal(result.platform, `linux/${hostPlatform().architecture}`);
    assert.equal(result.cacheHit, false);
    assert.deepEqual(result.process, {
      $typeName: "unkey.common.v1.ProcessConfig",
      argv: ["/bin/httpd", "-f", "-p", "8080", "-h", "/srv"],
      env: [
        { $typeName: "unkey.common.v1.EnvVar", name: "PATH", value: "/bin" },
        { $typeName: "unkey.common.v1.EnvVar", name: "HOME", value: "/srv" },
      ],
      workingDir: "/srv",
      uid: 1000,
      gid: 1000,
      groups: [1001],
      stopSignal: "SIGINT",
      exposedPorts: [8080],
    });
    const [asset, ...others] = builder.assets.rootfs;
    assert.equal(others.length, 0);
    assert.equal(asset?.assetId, result.rootfsAssetId);
    assert.equal(asset?.header.labels["image.digest"], pushed.digest);
    const image = join(await temporary(context), "rootfs");
    await writeFile(image, asset?.bytes ?? "");
    execFileSync("fsck.erofs", [image], { stdio: "pipe" });
    assert.equal(result.rootfsBytes, BigInt(asset?.bytes.length ?? 0));
    assert.deepEqual(await builder.scratch(), []);

    const log = [];
    for await (const { text } of builder
      .as(tenantId)
      .streamBuildLogs({ tenantId, buildId: result.buildId, follow: true }))
      log.push(text);
    assert.match(log.join("\n"), /hello:v1 is sha256:.*\nfetching 1 of 1 layers.*\nunpacked sha256:.*\nstored asset_/);
  });

  test("the same digest again does no work, under another tag too", async (context) => {
    const builder = await startBuilder(context);
    const { reference, layout } = await push(context, registry, "cached");
    const first = await build(builder, tenantId, fromRegistry(reference));
    await registry.settled();
    const readsBefore = registry.blobReads();
    assert.ok(readsBefore > 0, "the counter counts");
    await pushLayout({ layout, host: registry.host, repository: "cached", tag: "v2" });
    const second = await build(builder, tenantId, fromRegistry(reference.replace(":v1", ":v2")));
    assert.equal(second.state, BuildState.COMPLETED);
    assert.equal(second.cacheHit, true);
    assert.deepEqual(statesOf(second), ["PENDING", "PULLING", "COMPLETED"]);
    assert.equal(second.rootfsAssetId, first.rootfsAssetId);
    assert.deepEqual(second.process, first.process);
    assert.equal(builder.assets.rootfs.length, 1);
    await registry.settled();
    assert.equal(registry.blobReads(), readsBefore, "no blob was read");

    const other = await build(builder, newId("tenant"), fromRegistry(reference));
    assert.equal(other.cacheHit, false, "another tenant's result is not seen");
  });

  test("two builds of one image at once do the work once", async (context) => {
    const builder = await startBuilder(context);
    const { reference } = await push(context, registry, "twice");
    const results = await Promise.all([1, 2].map(() => build(builder, tenantId, fromRegistry(reference))));
    assert.equal(results.filter(({ cacheHit }) => cacheHit).length, 1);
    assert.equal(builder.assets.rootfs.length, 1);
  });

  test("a root filesystem that was collected is built again", async (context) => {
    const builder = await startBuilder(context);
    const { reference } = await push(context, registry, "collected");
    await build(builder, tenantId, fromRegistry(reference));
    builder.assets.stored.length = 0;
    const again = await build(builder, tenantId, fromRegistry(reference));
    assert.equal(again.state, BuildState.COMPLETED);
    assert.equal(again.cacheHit, false);
    assert.equal(builder.assets.rootfs.length, 1);
  });

  test("a root filesystem that an earlier try stored is not stored twice", async (context) => {
    const first = await startBuilder(context);
    const { reference } = await push(context, registry, "stored");
    await build(first, tenantId, fromRegistry(reference));
    const second = await startBuilder(context); // knows nothing of the first one's builds
    second.assets.stored.push(...first.assets.stored);
    const result = await build(second, tenantId, fromRegistry(reference));
    assert.equal(result.cacheHit, false);
    assert.equal(result.rootfsAssetId, first.assets.rootfs[0]?.assetId, "the bytes are the same, so the asset is");
    assert.equal(second.assets.rootfs.length, 1);
  });

  test("a key answers the same build, and refuses another request", async (context) => {
    const builder = await startBuilder(context);
    const { reference } = await push(context, registry, "key");
    const client = builder.as(tenantId);
    const request = { tenantId, idempotencyKey: "k", ...fromRegistry(reference) };
    const [first, second] = await Promise.all([client.buildImage(request), client.buildImage(request)]);
    assert.equal(first.buildId, second.buildId);
    await assert.rejects(
      client.buildImage({ ...request, argvOverride: ["/other"] }),
      refused("IDEMPOTENCY_KEY_REUSED"),
    );
    const otherTenant = newId("tenant");
    const other = await builder.as(otherTenant).buildImage({ ...request, tenantId: otherTenant });
    assert.notEqual(other.buildId, first.buildId);
    const { builds } = await client.listBuilds({ tenantId });
    assert.deepEqual(
      builds.map(({ buildId }) => buildId),
      [first.buildId],
    );
  });

  test("an asset store that is away for a moment is waited for", async (context) => {
    const builder = await startBuilder(context);
    const { reference } = await push(context, registry, "retried");
    builder.assets.failures.push(new ServiceError("DEPENDENCY_UNAVAILABLE", "not now"));
    assert.equal((await build(builder, tenantId, fromRegistry(reference))).state, BuildState.COMPLETED);
  });

  test("an asset store that refuses fails the build with its reason", async (context) => {
    const builder = await startBuilder(context);
    const { reference } = await push(context, registry, "refused");
    builder.assets.failures.push(new ServiceError("RESOURCE_EXHAUSTED", "the tenant's quota is used up"));
    failed(await build(builder, tenantId, fromRegistry(reference)), "RESOURCE_EXHAUSTED", /quota/);
    assert.deepEqual(await builder.scratch(), []);
  });

  test("an image without a command fails, and builds when one is given", async (context) => {
    const builder = await startBuilder(context);
    const { reference } = await push(context, registry, "silent", { config: {} });
    failed(await build(builder, tenantId, fromRegistry(reference)), "IMAGE_NO_COMMAND", /neither ENTRYPOINT nor CMD/);
    const given = await build(builder, tenantId, { ...fromRegistry(reference), argvOverride: ["/hello", "x"] });
    assert.deepEqual(given.process?.argv, ["/hello", "x"]);
    failed(await build(builder, tenantId, fromRegistry(reference)), "IMAGE_NO_COMMAND", /neither/);
  });

  test("an image for another architecture", async (context) => {
    const builder = await startBuilder(context);
    const architecture = hostPlatform().architecture === "amd64" ? "arm64" : "amd64";
    const { reference } = await push(context, registry, "foreign", {
      platform: { os: "linux", architecture, variant: "" },
    });
    failed(
      await build(builder, tenantId, fromRegistry(reference)),
      "IMAGE_PLATFORM_UNAVAILABLE",
      new RegExp(`is for linux/${architecture}`),
    );
  });

  test("an unknown image", async (context) => {
    const builder = await startBuilder(context);
    failed(
      await build(builder, tenantId, fromRegistry(`${registry.host}/nothing:v1`)),
      "IMAGE_NOT_FOUND",
      /nothing:v1 is not in the registry/,
    );
  });

  test("an unknown user", async (context) => {
    const builder = await startBuilder(context);
    const { reference } = await push(context, registry, "user", { config: { Cmd: ["/hello"], User: "nobody" } });
    failed(await build(builder, tenantId, fromRegistry(reference)), "IMAGE_USER_UNKNOWN", /"nobody"/);
    assert.equal(builder.assets.rootfs.length, 0);
  });

  test("a layer that is not what its digest says", async (context) => {
    const builder = await startBuilder(context);
    const { reference, layout } = await push(context, registry, "damaged", {
      files: [{ path: "hello", content: "to be damaged" }],
    });
    const blobs = await readdir(join(layout, "blobs", "sha256"));
    for (const blob of blobs) {
      const bytes = await readFile(join(layout, "blobs", "sha256", blob));
      if (bytes.includes("to be damaged")) await writeFile(registry.blobPath(`sha256:${blob}`), bytes.fill("x", 0, 10));
    }
    failed(await build(builder, tenantId, fromRegistry(reference)), "IMAGE_DIGEST_MISMATCH", /has the digest/);
    assert.deepEqual(await builder.scratch(), []);
  });
});

test("a registry's login is used, and found nowhere afterwards", { skip: needsAll }, async (context) => {
  await using registry = await startTestRegistry({ login: true });
  const layout = join(await temporary(context), "layout");
  await assembleImage({ directory: layout, files: [], config: { Cmd: ["/hello"] } });
  await pushLayout({ layout, host: registry.host, repository: "private", tag: "v1", login: testLogin });
  const builder = await startBuilder(context);
  const image = fromRegistry(`${registry.host}/private:v1`);
  assert.equal((await build(builder, tenantId, { ...image, credentials: testLogin })).state, BuildState.COMPLETED);
  const wrong = { username: testLogin.username, password: "wrong-password" };
  // The digest is known from the first build, yet the registry is asked whether this login may read it.
  failed(
    await build(builder, tenantId, { ...image, credentials: wrong }),
    "REGISTRY_CREDENTIALS_REJECTED",
    /refuses the user name or password/,
  );
  failed(await build(builder, tenantId, image), "REGISTRY_CREDENTIALS_REQUIRED", /without a login/);
  await builder.close();
  for (const name of await readdir(builder.directory, { recursive: true })) {
    const text = await readFile(join(builder.directory, name), "latin1").catch(() => "");
    assert.ok(!text.includes(testLogin.password) && !text.includes(wrong.password), `${name} holds a password`);
  }
  assert.ok(!builder.lines.join("").includes(testLogin.password) && !builder.lines.join("").includes(wrong.password));
});

test("references, formats and ids that cannot be are refused at once", async (context) => {
  const builder = await startBuilder(context);
  const client = builder.as(tenantId);
  const request = { tenantId, idempotencyKey: "k" };
  await assert.rejects(
    client.buildImage({ ...request, ...fromRegistry("Not An Image") }),
    refused("IMAGE_REFERENCE_INVALID"),
  );
  await assert.rejects(client.buildImage({ ...request, ...fromUpload(newId("upload")) }), refused("UPLOAD_NOT_FOUND"));
  await assert.rejects(client.buildImage(request), refused("INVALID_REQUEST"));
  await assert.rejects(client.getBuild({ tenantId, buildId: "x" }), refused("INVALID_REQUEST"));
  await assert.rejects(client.getBuild({ tenantId, buildId: newId("build") }), refused("BUILD_NOT_FOUND"));
  await assert.rejects(client.verifyBuild({ tenantId, buildId: newId("build") }), refused("BUILD_NOT_FOUND"));
  assert.deepEqual((await client.listBuilds({ tenantId })).builds, []);
});

describe("builds from an upload", { skip: needsBusybox }, () => {
  test("an uploaded archive is built, twice with one work", async (context) => {
    const builder = await startBuilder(context);
    const layout = join(await temporary(context), "layout");
    const { manifestDigest } = await helloImage({ directory: layout });
    const { uploadId, digest, sizeBytes } = await upload(builder, tenantId, layout);
    const first = await build(builder, tenantId, fromUpload(uploadId));
    assert.equal(first.state, BuildState.COMPLETED, JSON.stringify(first.failure));
    assert.equal(first.imageDigest, manifestDigest);
    assert.equal(first.image, uploadId);
    const again = await upload(builder, tenantId, layout, digest, "hello.tar");
    assert.equal(again.sizeBytes, sizeBytes);
    const second = await build(builder, tenantId, fromUpload(again.uploadId));
    assert.deepEqual([second.cacheHit, second.image], [true, "hello.tar"]);
  });

  test("an upload belongs to its tenant", async (context) => {
    const builder = await startBuilder(context);
    const layout = join(await temporary(context), "layout");
    await assembleImage({ directory: layout, files: [], config: {} });
    const { uploadId } = await upload(builder, tenantId, layout);
    const stranger = newId("tenant");
    await assert.rejects(
      builder.as(stranger).buildImage({ tenantId: stranger, idempotencyKey: "k", ...fromUpload(uploadId) }),
      refused("UPLOAD_NOT_FOUND"),
    );
  });
});

test("uploads that are no image, too large or other than announced are refused and leave nothing", async (context) => {
  const builder = await startBuilder(context, { uploadMaxBytes: 100_000 });
  const client = builder.as(tenantId);
  const bytes = async function* (size: number): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < size; at += 10_000) yield Buffer.alloc(10_000, "x");
  };
  const layout = join(await temporary(context), "layout");
  await assembleImage({ directory: layout, files: [], config: {} });
  const large = join(await temporary(context), "layout");
  await assembleImage({ directory: large, files: [{ path: "a", content: Buffer.alloc(200_000) }], config: {} });
  await assert.rejects(client.uploadImage(uploadParts(tenantId, bytes(50_000))), refused("IMAGE_ARCHIVE_INVALID"));
  await assert.rejects(
    client.uploadImage(uploadParts(tenantId, exportLayoutArchive(large))),
    refused("IMAGE_TOO_LARGE"),
  );
  await assert.rejects(
    client.uploadImage(uploadParts(tenantId, exportLayoutArchive(layout), `sha256:${"0".repeat(64)}`)),
    refused("IMAGE_DIGEST_MISMATCH"),
  );
  async function* headless() {
    yield { part: { case: "chunk" as const, value: Buffer.alloc(1) } };
  }
  await assert.rejects(client.uploadImage(headless()), refused("INVALID_REQUEST"));
  async function* broken(): AsyncGenerator<Uint8Array> {
    yield* exportLayoutArchive(layout);
    throw new Error("the client is gone");
  }
  await assert.rejects(client.uploadImage(uploadParts(tenantId, broken())));
  assert.deepEqual(await readdir(join(builder.directory, "uploads")), []);
});
