import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetState } from "@unkey/api/asset";
import { isServiceError } from "@unkey/base";
import {
  bytes,
  contentOf,
  digestOf,
  type Fixture,
  openFixture,
  rejectsWith,
  uploadLifetimeMs,
  uploadOf,
} from "./fixture.ts";

const signal = new AbortController().signal;

function begin(assets: Fixture, more: { uploadKey?: string; name?: string; attachedTo?: string; keep?: boolean } = {}) {
  const { tenantId } = assets;
  return assets.actingFor(tenantId, "builderd").beginUpload({
    tenantId,
    uploadKey: "key",
    name: "in parts",
    kind: AssetKind.ROOTFS,
    labels: { app: "web" },
    ...more,
  });
}

function append(assets: Fixture, assetId: string, offset: number, ...chunks: readonly (string | Error)[]) {
  const { tenantId } = assets;
  return assets.actingFor(tenantId, "builderd").appendUpload(
    (async function* () {
      yield { part: { case: "header" as const, value: { tenantId, assetId, offset: BigInt(offset) } } };
      for (const chunk of chunks) {
        if (chunk instanceof Error) throw chunk;
        yield await Promise.resolve({ part: { case: "chunk" as const, value: bytes(chunk) } });
      }
    })(),
  );
}

function finish(assets: Fixture, assetId: string, text: string, more: { digest?: string; sizeBytes?: bigint } = {}) {
  const { tenantId } = assets;
  const content = { digest: digestOf(bytes(text)), sizeBytes: BigInt(text.length), ...more };
  return assets.actingFor(tenantId, "builderd").finishUpload({ tenantId, assetId, ...content });
}

const incoming = (assets: Fixture) => readdirSync(join(assets.dir, "blobs", "incoming"));

test("an upload in parts is a row from its beginning, goes on where it stopped, and becomes available", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const client = assets.actingFor(tenantId, "builderd");
  const begun = await begin(assets);
  assert.deepEqual([begun.state, begun.digest, begun.version, begun.receivedBytes], [AssetState.UPLOADING, "", 0, 0n]);
  assert.equal((await begin(assets)).assetId, begun.assetId, "the same key is the same upload");
  assert.equal((await append(assets, begun.assetId, 0, "one ", "two ")).receivedBytes, 8n);
  assert.equal((await client.getAsset({ tenantId, assetId: begun.assetId })).receivedBytes, 8n);
  assert.equal((await begin(assets)).receivedBytes, 8n);
  await append(assets, begun.assetId, 8, "three");
  const done = await finish(assets, begun.assetId, "one two three");
  assert.deepEqual([done.assetId, done.state, done.version], [begun.assetId, AssetState.AVAILABLE, 1]);
  assert.equal(await contentOf(client.downloadAsset({ tenantId, assetId: done.assetId })), "one two three");
  assert.deepEqual(incoming(assets), []);
  // A lost answer, and what the key and the id mean now.
  assert.equal((await finish(assets, begun.assetId, "one two three")).assetId, begun.assetId);
  assert.equal((await begin(assets)).state, AssetState.AVAILABLE);
  await rejectsWith(finish(assets, begun.assetId, "something else"), "ASSET_NOT_UPLOADING");
  await rejectsWith(append(assets, begun.assetId, 13, "more"), "ASSET_NOT_UPLOADING");
  await rejectsWith(begin(assets, { name: "another" }), "UPLOAD_KEY_REUSED");
  const usage = await client.getStorageUsage({ tenantId });
  assert.deepEqual([usage.storedBytes, usage.assetCount], [13n, 1n]);
});

test("a broken stream keeps what arrived, and a wrong offset is told the right one", async () => {
  await using assets = await openFixture();
  const { assetId } = await begin(assets);
  await assert.rejects(append(assets, assetId, 0, "kept ", new Error("the sender broke off")));
  assert.equal(readFileSync(join(assets.dir, "blobs", "incoming", assetId), "utf8"), "kept ");
  for (const offset of [0, 4, 6]) {
    await assert.rejects(append(assets, assetId, offset, "x"), (error: unknown) => {
      assert.ok(isServiceError(error, "UPLOAD_OFFSET_MISMATCH"), String(error));
      assert.equal(error.metadata["receivedBytes"], "5");
      return true;
    });
  }
  await append(assets, assetId, 5, "whole");
  assert.equal((await finish(assets, assetId, "kept whole")).state, AssetState.AVAILABLE);
});

test("an upload is resumed by another process: the digest is made from the file", async () => {
  await using first = await openFixture();
  const { assetId } = await begin(first);
  await append(first, assetId, 0, "before ");
  await using second = await openFixture({ dir: first.dir });
  const tenantId = first.tenantId;
  const client = second.actingFor(tenantId, "builderd");
  const assets = { ...second, tenantId };
  await append(assets, assetId, 7, "and after");
  await finish(assets, assetId, "before and after");
  assert.equal(await contentOf(client.downloadAsset({ tenantId, assetId })), "before and after");
});

test("what does not fit the declaration is refused and may be continued or cancelled", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const { assetId } = await begin(assets);
  await append(assets, assetId, 0, "12345");
  await rejectsWith(finish(assets, assetId, "123456"), "ASSET_SIZE_MISMATCH", /5 bytes arrived/);
  await rejectsWith(finish(assets, assetId, "54321"), "ASSET_DIGEST_MISMATCH");
  assert.equal((await finish(assets, assetId, "12345")).state, AssetState.AVAILABLE);
  const client = assets.actingFor(tenantId, "builderd");
  await rejectsWith(client.cancelUpload({ tenantId, assetId }), "ASSET_NOT_UPLOADING");

  const other = await begin(assets, { uploadKey: "other" });
  await append(assets, other.assetId, 0, "to be dropped");
  await client.cancelUpload({ tenantId, assetId: other.assetId });
  await client.cancelUpload({ tenantId, assetId: other.assetId });
  await rejectsWith(client.getAsset({ tenantId, assetId: other.assetId }), "ASSET_NOT_FOUND");
  assert.deepEqual(incoming(assets), []);
  assert.equal((await client.getStorageUsage({ tenantId })).storedBytes, 5n);
  assert.notEqual((await begin(assets, { uploadKey: "other" })).assetId, other.assetId, "the key is free again");
});

test("one call at a time works on an upload, and a cancellation ends it", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const { assetId } = await begin(assets);
  const arrived = Promise.withResolvers<void>();
  async function* never() {
    yield { part: { case: "header" as const, value: { tenantId, assetId, offset: 0n } } };
    yield { part: { case: "chunk" as const, value: bytes("first") } };
    arrived.resolve();
    await new Promise(() => undefined);
  }
  const client = assets.actingFor(tenantId, "builderd");
  const stuck = assert.rejects(client.appendUpload(never()), (error) => isServiceError(error, "CANCELED"));
  await arrived.promise;
  await rejectsWith(append(assets, assetId, 0, "second"), "UPLOAD_BUSY");
  await rejectsWith(finish(assets, assetId, "first"), "UPLOAD_BUSY");
  await client.cancelUpload({ tenantId, assetId });
  await stuck;
  assert.deepEqual(incoming(assets), []);
});

test("an equal asset takes the upload's place, and its id still leads there", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const client = assets.actingFor(tenantId, "builderd");
  const labels = { app: "web" };
  const known = await client.uploadAsset(uploadOf(bytes("equal"), { tenantId, name: "in parts", labels }));
  const { ino } = statSync(assets.blobPath(digestOf(bytes("equal"))));
  const { assetId } = await begin(assets, { keep: true });
  await append(assets, assetId, 0, "equal");
  const merged = await finish(assets, assetId, "equal");
  assert.deepEqual([merged.assetId, merged.keep], [known.assetId, true]);
  assert.equal((await finish(assets, assetId, "equal")).assetId, known.assetId);
  assert.equal((await begin(assets)).assetId, known.assetId);
  assert.equal(statSync(assets.blobPath(digestOf(bytes("equal")))).ino, ino, "VMs go on sharing the inode");
  assert.equal((await client.getStorageUsage({ tenantId })).assetCount, 1n);
});

test("an empty upload is an asset", async () => {
  await using assets = await openFixture();
  const { assetId } = await begin(assets);
  assert.equal((await finish(assets, assetId, "")).sizeBytes, 0n);
});

test("idle uploads expire, those that move do not", async () => {
  await using assets = await openFixture();
  const idle = await begin(assets, { uploadKey: "idle" });
  const moving = await begin(assets, { uploadKey: "moving" });
  await append(assets, idle.assetId, 0, "idle");
  assets.advance(uploadLifetimeMs - 1000);
  await append(assets, moving.assetId, 0, "moving");
  assets.advance(2000);
  const operator = assets.as("operator");
  const expected = await operator.collectGarbage({ dryRun: true });
  const actual = await operator.collectGarbage({});
  assert.deepEqual([actual.sweptAssetIds, actual.freedBytes], [[idle.assetId], 4n]);
  assert.deepEqual(expected, actual);
  assert.deepEqual(incoming(assets), [moving.assetId]);
  await rejectsWith(append(assets, idle.assetId, 4, "late"), "ASSET_NOT_FOUND");
  await finish(assets, moving.assetId, "moving");
});

test("quotas count what is being uploaded, in bytes and in number", async () => {
  await using assets = await openFixture({ tenantQuotaBytes: 20, tenantQuotaAssets: 2 });
  const { tenantId } = assets;
  const client = assets.actingFor(tenantId, "builderd");
  const { assetId } = await begin(assets);
  await append(assets, assetId, 0, "0123456789", "01");
  assert.equal((await client.getStorageUsage({ tenantId })).storedBytes, 12n);
  await rejectsWith(append(assets, assetId, 12, "2345", "6789a"), "ASSET_QUOTA_EXCEEDED");
  const { receivedBytes } = await client.getAsset({ tenantId, assetId });
  assert.equal(receivedBytes, 16n, "what fitted was kept");
  await rejectsWith(client.uploadAsset(uploadOf(bytes("01234"), { tenantId })), "ASSET_QUOTA_EXCEEDED", /16 of 20/);
  const four = await client.uploadAsset(uploadOf(bytes("0123"), { tenantId }));
  await rejectsWith(begin(assets, { uploadKey: "third" }), "ASSET_QUOTA_EXCEEDED", /2 are allowed/);
  await rejectsWith(client.uploadAsset(uploadOf(bytes(""), { tenantId })), "ASSET_QUOTA_EXCEEDED", /2 are allowed/);
  const header = { tenantId, name: "copy", kind: AssetKind.ROOTFS, digest: four.digest, sizeBytes: 4n };
  await rejectsWith(client.registerAsset({ header }), "ASSET_QUOTA_EXCEEDED");
  await client.cancelUpload({ tenantId, assetId });
  await client.registerAsset({ header });
  const usage = await client.getStorageUsage({ tenantId });
  assert.deepEqual([usage.storedBytes, usage.assetCount, usage.quotaBytes, usage.quotaAssets], [8n, 2n, 20n, 2n]);
});

test("an upload is capped whatever it says, and by what it says", async () => {
  await using assets = await openFixture({ maxAssetBytes: 10 });
  const { assetId } = await begin(assets);
  await rejectsWith(append(assets, assetId, 0, "0123456789", "a"), "ASSET_TOO_LARGE");
  assert.equal((await finish(assets, assetId, "0123456789")).sizeBytes, 10n);
});

test("attachments are the owner's, go with what they describe, and are held with it", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const builder = assets.actingFor(tenantId, "builderd");
  const rootfs = await builder.uploadAsset(uploadOf(bytes("rootfs"), { tenantId, name: "app" }));
  const describe = (attachedTo: string, more: { tenantId?: string } = { tenantId }) =>
    uploadOf(bytes("about it"), { name: "sbom", kind: AssetKind.SBOM, attachedTo, ...more });
  const sbom = await builder.uploadAsset(describe(rootfs.assetId));
  assert.equal(sbom.attachedTo, rootfs.assetId);
  const listed = await builder.listAssets({ tenantId, attachedTo: rootfs.assetId });
  assert.deepEqual(
    listed.assets.map((one) => one.assetId),
    [sbom.assetId],
  );
  await rejectsWith(builder.uploadAsset(describe(sbom.assetId)), "INVALID_REQUEST", /itself attached/);
  const kernel = await assets.as("metald").uploadAsset(uploadOf(bytes("kernel"), { kind: AssetKind.KERNEL }));
  await rejectsWith(builder.uploadAsset(describe(kernel.assetId)), "ASSET_NOT_FOUND", /of this owner/);
  await rejectsWith(begin(assets, { attachedTo: kernel.assetId }), "ASSET_NOT_FOUND");

  const { lease } = await assets.as("metald").prepareAssets({
    tenantId,
    leaseKey: "vm_1",
    placements: [{ assetId: rootfs.assetId, fileName: "rootfs" }],
    targetDir: join(assets.jails, "vm_1"),
    leaseMs: 60_000n,
  });
  await rejectsWith(builder.deleteAsset({ tenantId, assetId: sbom.assetId }), "ASSET_IN_USE");
  await assets.as("metald").releaseLease({ tenantId, leaseId: lease!.leaseId });
  const half = await begin(assets, { attachedTo: rootfs.assetId });
  await append(assets, half.assetId, 0, "half");
  await builder.deleteAsset({ tenantId, assetId: rootfs.assetId });
  assert.equal((await builder.getAsset({ tenantId, assetId: sbom.assetId })).state, AssetState.DELETING);
  await rejectsWith(finish(assets, half.assetId, "half"), "ASSET_NOT_AVAILABLE");
  await assets.manager.collector.collect(signal);
  await assets.manager.collector.collect(signal);
  assert.deepEqual(
    (await builder.listAssets({ tenantId })).assets.map((one) => one.assetId),
    [kernel.assetId],
  );
  await assets.manager.removal.pass(signal);
  assert.equal(existsSync(assets.blobPath(digestOf(bytes("about it")))), false);
  assert.equal((await builder.getStorageUsage({ tenantId })).assetCount, 0n);
  await assets.manager.collector.collect(signal);
  assert.deepEqual(incoming(assets), []);
});

test("a lease on an attachment holds what it is attached to", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const builder = assets.actingFor(tenantId, "builderd");
  const rootfs = await builder.uploadAsset(uploadOf(bytes("rootfs"), { tenantId }));
  const about = uploadOf(bytes("sbom"), { tenantId, kind: AssetKind.SBOM, attachedTo: rootfs.assetId });
  const sbom = await builder.uploadAsset(about);
  const { lease } = await assets.as("metald").prepareAssets({
    tenantId,
    leaseKey: "reader",
    placements: [{ assetId: sbom.assetId, fileName: "sbom" }],
    targetDir: join(assets.jails, "reader"),
    leaseMs: 60_000n,
  });
  assert.deepEqual(lease?.assetIds, [sbom.assetId]);
  assert.equal((await builder.getAsset({ tenantId, assetId: sbom.assetId })).leaseCount, 1);
  await rejectsWith(builder.deleteAsset({ tenantId, assetId: rootfs.assetId }), "ASSET_IN_USE");
});

test("versions count within owner, kind and name, and no number comes twice", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const builder = assets.actingFor(tenantId, "builderd");
  const store = (text: string, name: string, kind: AssetKind = AssetKind.ROOTFS) =>
    builder.uploadAsset(uploadOf(bytes(text), { tenantId, name, kind }));
  const versions = [
    await store("a", "app"),
    await store("b", "app"),
    await store("b", "app"),
    await store("c", "app", AssetKind.KERNEL),
    await store("d", "other"),
  ].map((asset) => asset.version);
  assert.deepEqual(versions, [1, 2, 2, 1, 1]);
  const second = (await builder.listAssets({ tenantId, name: "app", kind: AssetKind.ROOTFS, version: 2 })).assets;
  assert.deepEqual(
    second.map((one) => one.digest),
    [digestOf(bytes("b"))],
  );
  await builder.deleteAsset({ tenantId, assetId: second[0]!.assetId });
  for (let i = 0; i < 2; i++) await assets.manager.collector.collect(signal);
  assert.equal((await store("e", "app")).version, 3);
  await rejectsWith(builder.listAssets({ tenantId, version: 2 }), "INVALID_REQUEST", /needs a name/);
  const byDigest = (await builder.listAssets({ tenantId, digest: digestOf(bytes("d")) })).assets;
  assert.deepEqual(
    byDigest.map((one) => one.name),
    ["other"],
  );
});

test("what is kept never ages, and ends when it is given up", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const builder = assets.actingFor(tenantId, "builderd");
  const kept = await builder.uploadAsset(uploadOf(bytes("kept"), { tenantId, keep: true }));
  assets.advance(1e12);
  for (let i = 0; i < 2; i++) await assets.manager.collector.collect(signal);
  assert.equal((await builder.getAsset({ tenantId, assetId: kept.assetId })).state, AssetState.AVAILABLE);
  await builder.deleteAsset({ tenantId, assetId: kept.assetId });
  for (let i = 0; i < 2; i++) await assets.manager.collector.collect(signal);
  await rejectsWith(builder.getAsset({ tenantId, assetId: kept.assetId }), "ASSET_NOT_FOUND");
});
