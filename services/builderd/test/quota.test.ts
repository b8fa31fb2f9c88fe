import assert from "node:assert/strict";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { BuildState } from "@unkey/api/builder";
import { isServiceError, newId } from "@unkey/base";
import { assembleImage } from "@unkey/oci";
import { type Builder, build, fromUpload, startBuilder, temporary, upload } from "./harness.ts";

const tenantId = newId("tenant");

/** A builder whose tenants have this quota. */
async function startWith(context: TestContext, quota: unknown, directory?: string): Promise<Builder> {
  const policyFile = join(await temporary(context), "policy.json");
  await writeFile(policyFile, JSON.stringify({ default: { quota } }));
  return startBuilder(context, { policyFile, ...(directory === undefined ? {} : { directory }) });
}

async function uploaded(context: TestContext, builder: Builder, content: string): Promise<string> {
  const directory = join(await temporary(context), "layout");
  await assembleImage({ directory, files: [{ path: "app", content }], config: { Cmd: ["/app"] } });
  return (await upload(builder, tenantId, directory, "", `${content.slice(0, 8)}.tar`)).uploadId;
}

const quotaOf = (builder: Builder) => builder.as(tenantId).getBuildQuota({ tenantId });

/** Resolves with the message of a refusal that says when to come back. */
async function refusal(asked: Promise<unknown>): Promise<string> {
  const error: unknown = await asked.then(
    () => assert.fail("it was not refused"),
    (refused: unknown) => refused,
  );
  assert.ok(isServiceError(error, "BUILD_QUOTA_EXCEEDED"), String(error));
  const resetsAtMs = Number(error.metadata["resetsAtMs"]);
  assert.ok(resetsAtMs > Date.now() && resetsAtMs <= Date.now() + 86_400_000 && resetsAtMs % 86_400_000 === 0);
  assert.ok(error.message.endsWith(`the count begins again at ${new Date(resetsAtMs).toISOString()}`), error.message);
  return error.message;
}

test("so many builds a day, counted over a restart; what the cache answers is free", async (context) => {
  const quota = { buildsPerDay: 2 };
  const first = await startWith(context, quota);
  const { cacheHit, image } = await build(first, tenantId, fromUpload(await uploaded(context, first, "a")));
  assert.deepEqual([cacheHit, image], [false, "a.tar"]);
  const again = await build(first, tenantId, fromUpload(await uploaded(context, first, "a")));
  assert.equal(again.cacheHit, true);
  assert.equal((await quotaOf(first)).dailyUsed, 1);
  await first.close();

  const second = await startWith(context, quota, first.directory);
  const { dailyUsed, dailyLimit, concurrentUsed, concurrentLimit } = await quotaOf(second);
  assert.deepEqual([dailyUsed, dailyLimit, concurrentUsed, concurrentLimit], [1, 2, 0, 2]);
  const kept = await uploaded(context, second, "c");
  const key = { tenantId, idempotencyKey: "the last one" };
  const request = { ...key, ...fromUpload(await uploaded(context, second, "b")) };
  const last = await second.as(tenantId).buildImage(request);
  assert.match(
    await refusal(second.as(tenantId).buildImage({ tenantId, idempotencyKey: "more", ...fromUpload(kept) })),
    /^the tenant may have 2 builds a day: 2 are used; /,
  );
  assert.equal((await second.as(tenantId).buildImage(request)).buildId, last.buildId, "a repeat is no new build");
  const stranger = newId("tenant");
  assert.equal((await second.as(stranger).getBuildQuota({ tenantId: stranger })).dailyUsed, 0);
});

test("layers beyond the day's bytes are not fetched; those of the cache are free", async (context) => {
  const builder = await startWith(context, { bytesPerDay: "8KiB" });
  const small = await build(builder, tenantId, fromUpload(await uploaded(context, builder, "a".repeat(3000))));
  assert.equal(small.state, BuildState.COMPLETED, JSON.stringify(small.failure));
  const used = Number((await quotaOf(builder)).dailyBytesUsed);
  assert.ok(used > 0 && used <= 8192, `${used} bytes`);
  // Not compressible, so that it travels as long as it is.
  const noise = Array.from({ length: 3000 }, () => newId("op")).join("");
  const large = await build(builder, tenantId, fromUpload(await uploaded(context, builder, noise)));
  assert.deepEqual([large.state, large.failure?.reason], [BuildState.FAILED, "BUILD_QUOTA_EXCEEDED"]);
  assert.match(large.failure?.message ?? "", /8 KiB of layers a day: .* are fetched and the image needs .* more; /);
  assert.equal(Number((await quotaOf(builder)).dailyBytesUsed), used, "nothing was fetched");
  assert.deepEqual(await builder.scratch(), []);
  await builder.close();
  assert.deepEqual(await readdir(join(builder.directory, "uploads")), [], "a refused build frees its upload");
});

test("no minutes, no builds", async (context) => {
  const builder = await startWith(context, { minutesPerDay: 0 });
  const asked = builder
    .as(tenantId)
    .buildImage({ tenantId, idempotencyKey: "k", ...fromUpload(await uploaded(context, builder, "a")) });
  assert.match(await refusal(asked), /^the tenant may have 0 minutes of building a day: 0 are used; /);
});

test("a log is read on behind any line", async (context) => {
  const builder = await startWith(context, {});
  const { buildId } = await build(builder, tenantId, fromUpload(await uploaded(context, builder, "a")));
  const read = (afterSequence: bigint) =>
    Array.fromAsync(builder.as(tenantId).streamBuildLogs({ tenantId, buildId, follow: true, afterSequence }));
  const all = await read(0n);
  assert.ok(all.length >= 3);
  assert.deepEqual(
    all.map(({ sequence }) => sequence),
    all.map((_, at) => BigInt(at + 1)),
  );
  assert.deepEqual(await read(2n), all.slice(2));
  assert.deepEqual(await read(BigInt(all.length)), []);
});
