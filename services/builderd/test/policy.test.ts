import assert from "node:assert/strict";
import { rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { type Build, BuildState } from "@unkey/api/builder";
import { type ErrorReason, isServiceError, newId } from "@unkey/base";
import { assembleImage } from "@unkey/oci";
import { type Builder, build, fromRegistry, fromUpload, startBuilder, temporary, upload } from "./harness.ts";

const tenantId = newId("tenant");

async function policyFile(context: TestContext, document: unknown) {
  const path = join(await temporary(context), "policy.json");
  const write = async (next: unknown) => {
    await writeFile(`${path}.new`, JSON.stringify(next));
    await rename(`${path}.new`, path);
  };
  await write(document);
  return { path, write };
}

/** Builds an uploaded image with one file of that mode and size. */
async function buildOf(
  context: TestContext,
  builder: Builder,
  file: { readonly mode?: number; readonly content?: string } = {},
  owner = tenantId,
): Promise<Build> {
  const directory = join(await temporary(context), "layout");
  const { mode = 0o755, content = "x" } = file;
  await assembleImage({ directory, files: [{ path: "app", content, mode }], config: { Cmd: ["/app"] } });
  return build(builder, owner, fromUpload((await upload(builder, owner, directory)).uploadId));
}

function failed({ state, failure }: Build, reason: ErrorReason, words: RegExp): void {
  assert.deepEqual([state, failure?.reason], [BuildState.FAILED, reason], failure?.message ?? "");
  assert.match(failure?.message ?? "", words);
  assert.notEqual(failure?.nextStep, "");
}

test("an image that the policy does not allow is refused before anything is asked of a registry", async (context) => {
  const { path } = await policyFile(context, { default: { images: ["ghcr.io/acme/**", "upload"] } });
  const builder = await startBuilder(context, { policyFile: path });
  const asked = builder.as(tenantId).buildImage({ tenantId, idempotencyKey: "k", ...fromRegistry("debian:12") });
  await assert.rejects(asked, (error) => {
    assert.ok(isServiceError(error, "IMAGE_NOT_ALLOWED"));
    assert.equal(error.message, "the build policy allows ghcr.io/acme/**, upload, not docker.io/library/debian");
    return true;
  });
  assert.deepEqual((await builder.as(tenantId).listBuilds({ tenantId })).builds, []);
});

test("a policy that was narrowed while a build waited holds for it, and its key answers as before", async (context) => {
  const { path, write } = await policyFile(context, {});
  const gate = Promise.withResolvers<void>();
  const builder = await startBuilder(context, {
    policyFile: path,
    concurrency: 1,
    logins: {
      find: async () => {
        await gate.promise;
        return undefined;
      },
    },
  });
  const client = builder.as(tenantId);
  await client.buildImage({ tenantId, idempotencyKey: "first", ...fromRegistry("127.0.0.1:1/a") });
  const waiting = { tenantId, idempotencyKey: "second", ...fromRegistry("127.0.0.1:1/b") };
  const { buildId } = await client.buildImage(waiting);
  await write({ default: { images: ["upload"] } });
  gate.resolve();
  let last: Build | undefined;
  for await (last of client.watchBuild({ tenantId, buildId }));
  assert.ok(last);
  failed(last, "IMAGE_NOT_ALLOWED", /allows upload, not 127\.0\.0\.1:1\/b/);
  assert.equal((await client.buildImage(waiting)).buildId, buildId);
});

test("setuid programs are kept, refused or stripped as the policy says, and each policy has its own results", async (context) => {
  const { path, write } = await policyFile(context, {});
  const builder = await startBuilder(context, { policyFile: path });
  const privileged = { mode: 0o4755 };
  const kept = await buildOf(context, builder, privileged);
  assert.deepEqual([kept.state, kept.cacheHit], [BuildState.COMPLETED, false], JSON.stringify(kept.failure));

  await write({ default: { setuid: "refuse" } });
  failed(await buildOf(context, builder, privileged), "IMAGE_PRIVILEGED_FILE", /\/app.* has the setuid bit/);
  const harmless = await buildOf(context, builder);
  assert.equal(harmless.state, BuildState.COMPLETED, JSON.stringify(harmless.failure));

  await write({ default: {}, tenants: { [tenantId]: { setuid: "strip" } } });
  const stripped = await buildOf(context, builder, privileged);
  assert.deepEqual([stripped.state, stripped.cacheHit], [BuildState.COMPLETED, false]);
  assert.notEqual(stripped.policyDigest, kept.policyDigest);
  const bytesOf = ({ rootfsAssetId }: Build) =>
    builder.assets.rootfs.find(({ assetId }) => assetId === rootfsAssetId)?.bytes ?? assert.fail();
  assert.ok(!bytesOf(stripped).equals(bytesOf(kept)));
  assert.deepEqual((await buildOf(context, builder, privileged)).cacheHit, true);

  await write({});
  const again = await buildOf(context, builder, privileged);
  assert.deepEqual(
    [again.cacheHit, again.rootfsAssetId],
    [true, kept.rootfsAssetId],
    "what was made under it still holds",
  );
});

test("policies that only allow or refuse give the same bytes", async (context) => {
  const { path, write } = await policyFile(context, {});
  const builder = await startBuilder(context, { policyFile: path });
  const first = await buildOf(context, builder);
  await write({ default: { images: ["upload"], limits: { entries: 1000 } } });
  const second = await buildOf(context, builder);
  assert.deepEqual([second.cacheHit, second.policyDigest === first.policyDigest], [false, false]);
  const digests = builder.assets.rootfs.map(({ header }) => header.digest);
  assert.deepEqual([digests.length, new Set(digests).size], [2, 1]);
});

test("a tenant's limits on sizes hold for its builds", async (context) => {
  const { path } = await policyFile(context, {
    tenants: { [tenantId]: { limits: { file: "2KiB" } } },
  });
  const builder = await startBuilder(context, { policyFile: path });
  const large = { content: "x".repeat(3000) };
  failed(await buildOf(context, builder, large), "IMAGE_TOO_LARGE", /2 KiB/);
  assert.equal((await buildOf(context, builder, large, newId("tenant"))).state, BuildState.COMPLETED);
});
