import assert from "node:assert/strict";
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type Asset, AssetKind, AssetState, type BeginUploadRequest, StagingMethod } from "@unkey/api/asset";
import { newId } from "@unkey/base";
import {
  bytes,
  digestOf,
  type Fixture,
  graceMs,
  openFixture,
  prepare,
  rejectsWith,
  uploadLifetimeMs,
} from "./fixture.ts";

/*
 * Assets that are made of others: a root filesystem whose tree names the contents of layers.
 */

type Wish = Partial<Pick<BeginUploadRequest, "tenantId" | "uploadKey" | "partIds" | "attachedTo" | "name" | "kind">>;

function begin(assets: Fixture, wish: Wish = {}): Promise<Asset> {
  const { tenantId } = assets;
  return assets
    .as("builderd")
    .beginUpload({ tenantId, uploadKey: "tree", name: "web", kind: AssetKind.ROOTFS, ...wish });
}

/** Sends the bytes of an upload and ends it. */
async function fill(assets: Fixture, { tenantId, assetId }: Asset, text: string): Promise<Asset> {
  const builder = assets.as("builderd");
  await builder.appendUpload(
    (async function* () {
      yield await Promise.resolve({ part: { case: "header" as const, value: { tenantId, assetId, offset: 0n } } });
      yield { part: { case: "chunk" as const, value: bytes(text) } };
    })(),
  );
  const content = { digest: digestOf(bytes(text)), sizeBytes: BigInt(text.length) };
  return builder.finishUpload({ tenantId, assetId, ...content });
}

async function layer(assets: Fixture, text: string, wish: Wish = {}): Promise<Asset> {
  const name = `layer ${text}`;
  return fill(assets, await begin(assets, { uploadKey: name, name, kind: AssetKind.LAYER, ...wish }), text);
}

async function tree(assets: Fixture, parts: readonly Asset[], wish: Wish & { readonly text?: string } = {}) {
  const { text = "tree", ...others } = wish;
  const partIds = parts.map(({ assetId }) => assetId);
  return fill(assets, await begin(assets, { uploadKey: `tree ${text}`, partIds, ...others }), text);
}

const get = (assets: Fixture, { tenantId, assetId }: Asset) => assets.as("builderd").getAsset({ tenantId, assetId });

function damage(assets: Fixture, { digest }: Asset): void {
  const path = assets.blobPath(digest as `sha256:${string}`);
  chmodSync(path, 0o644);
  writeFileSync(path, "damaged");
}

const collect = (assets: Fixture) => assets.as("operator").collectGarbage({});

test("an asset is answered with its parts, in order, with digests, lengths and states; each is counted once", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const [a, b] = [await layer(assets, "aaaa"), await layer(assets, "bb")];
  const partIds = [b.assetId, a.assetId];
  const begun = await begin(assets, { partIds });
  const expected = [
    [b.assetId, b.digest, 2n, AssetState.AVAILABLE],
    [a.assetId, a.digest, 4n, AssetState.AVAILABLE],
  ];
  const facts = ({ parts }: Asset) => parts.map((part) => [part.assetId, part.digest, part.sizeBytes, part.state]);
  assert.deepEqual(facts(begun), expected);
  assert.deepEqual(facts(await begin(assets, { partIds })), expected, "begun again");
  const whole = await fill(assets, begun, "tree");
  assert.deepEqual(facts(whole), expected);
  assert.deepEqual(facts(await get(assets, whole)), expected);
  const listed = await assets.as("builderd").listAssets({ tenantId, kind: AssetKind.ROOTFS });
  assert.deepEqual(listed.assets.map(facts), [expected]);
  assert.deepEqual(facts(await get(assets, a)), []);
  const { storedBytes, assetCount } = await assets.actingFor(tenantId, "builderd").getStorageUsage({ tenantId });
  assert.deepEqual([storedBytes, assetCount], [10n, 3n]);
});

test("parts are available assets of the owner, without parts, attached to nothing", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const a = await layer(assets, "a");
  const refused = (partIds: string[], reason: Parameters<typeof rejectsWith>[1], message: RegExp, wish: Wish = {}) =>
    rejectsWith(begin(assets, { partIds, uploadKey: "refused", ...wish }), reason, message);
  const nobodys = newId("asset");
  await refused([a.assetId, nobodys], "ASSET_NOT_FOUND", new RegExp(nobodys));
  const others = await layer(assets, "a", { tenantId: newId("tenant") });
  await refused([others.assetId], "ASSET_NOT_FOUND", new RegExp(others.assetId));
  const platforms = await layer(assets, "a", { tenantId: "" });
  await refused([platforms.assetId], "ASSET_NOT_FOUND", new RegExp(platforms.assetId));
  await tree(assets, [platforms], { tenantId: "" });
  const unfinished = await begin(assets, { uploadKey: "unfinished" });
  await refused([unfinished.assetId], "ASSET_NOT_AVAILABLE", new RegExp(`${unfinished.assetId} is in state uploading`));
  const given = await layer(assets, "given up");
  await assets.as("builderd").deleteAsset({ tenantId, assetId: given.assetId });
  await refused([given.assetId], "ASSET_NOT_AVAILABLE", new RegExp(`${given.assetId} is in state deleting`));
  const whole = await tree(assets, [a]);
  await refused([whole.assetId], "INVALID_REQUEST", /made of parts itself/);
  const attached = await layer(assets, "attached", { attachedTo: a.assetId });
  await refused([attached.assetId], "INVALID_REQUEST", /attached to another/);
  await refused([a.assetId], "INVALID_REQUEST", /has no parts/, { attachedTo: whole.assetId });
  await refused(["asset_x"], "INVALID_REQUEST", /part_ids/);
  const { assets: all } = await assets.as("builderd").listAssets({ tenantId, kind: AssetKind.ROOTFS });
  assert.deepEqual(
    all.filter((one) => one.tenantId !== "").map(({ assetId }) => assetId),
    [whole.assetId, unfinished.assetId],
    "what was refused left nothing",
  );
});

test("an upload key with other parts is refused, whether the upload has ended or not", async () => {
  await using assets = await openFixture();
  const [a, b] = [await layer(assets, "a"), await layer(assets, "b")];
  const partIds = [a.assetId, b.assetId];
  const begun = await begin(assets, { partIds });
  const others = [[], [a.assetId], [b.assetId, a.assetId], [...partIds, a.assetId]];
  for (const other of others) await rejectsWith(begin(assets, { partIds: other }), "UPLOAD_KEY_REUSED");
  const whole = await fill(assets, begun, "tree");
  for (const other of others) await rejectsWith(begin(assets, { partIds: other }), "UPLOAD_KEY_REUSED");
  assert.equal((await begin(assets, { partIds })).assetId, whole.assetId);
});

test("an equal asset is answered when its parts have the same bytes in the same order and are there", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const [a, b] = [await layer(assets, "a"), await layer(assets, "b")];
  const whole = await tree(assets, [a, b]);
  // Another asset of the same bytes is as good a part.
  const copy = await layer(assets, "a", { uploadKey: "copy", name: "copy" });
  assert.notEqual(copy.assetId, a.assetId);
  const again = await tree(assets, [copy, b], { uploadKey: "2" });
  assert.equal(again.assetId, whole.assetId);
  assert.deepEqual(
    again.parts.map((part) => part.assetId),
    [a.assetId, b.assetId],
  );
  assert.equal(
    (await begin(assets, { uploadKey: "2", partIds: [copy.assetId, b.assetId] })).assetId,
    whole.assetId,
    "the key names what the upload became",
  );
  const others = [await tree(assets, [b, a], { uploadKey: "3" }), await tree(assets, [a], { uploadKey: "4" })];
  others.push(await tree(assets, [], { uploadKey: "5" }));
  assert.equal(new Set([whole, ...others].map(({ assetId }) => assetId)).size, 4);
  assert.equal((await tree(assets, [], { uploadKey: "6" })).assetId, others[2]?.assetId);

  damage(assets, a);
  await rejectsWith(prepare(assets, whole.assetId), "ASSET_CORRUPT");
  assert.equal((await get(assets, whole)).state, AssetState.AVAILABLE);
  assert.equal((await get(assets, whole)).parts[0]?.state, AssetState.ERROR);
  const sound = await begin(assets, { uploadKey: "7", partIds: [b.assetId] });
  await rejectsWith(
    begin(assets, { uploadKey: "8", partIds: [a.assetId] }),
    "ASSET_NOT_AVAILABLE",
    new RegExp(a.assetId),
  );
  await assets.as("builderd").cancelUpload({ tenantId, assetId: sound.assetId });
});

test("an equal asset whose part has died is not answered, and its key names it no more", async () => {
  await using assets = await openFixture();
  const [a, b] = [await layer(assets, "a"), await layer(assets, "b")];
  const whole = await tree(assets, [a, b], { uploadKey: "1" });
  const late = await begin(assets, { uploadKey: "2", partIds: [a.assetId, b.assetId] });
  damage(assets, a);
  await rejectsWith(prepare(assets, whole.assetId), "ASSET_CORRUPT");
  const kept = await fill(assets, late, "tree");
  assert.equal(kept.assetId, late.assetId, "the new one is kept");
  const partIds = [a.assetId, b.assetId];
  await rejectsWith(begin(assets, { uploadKey: "1", partIds }), "ASSET_NOT_AVAILABLE", new RegExp(a.assetId));
  // The part's bytes, stored again, mend it and whatever is made of it.
  await layer(assets, "a", { uploadKey: "again" });
  assert.deepEqual(
    (await get(assets, whole)).parts.map(({ state }) => state),
    [AssetState.AVAILABLE, AssetState.AVAILABLE],
  );
  assert.equal((await begin(assets, { uploadKey: "1", partIds })).assetId, whole.assetId);
  await prepare(assets, whole.assetId);
});

test("parts are staged beside the whole, in order; one lease holds all, also when it is asked for again", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const [a, b] = [await layer(assets, "aaaa"), await layer(assets, "bb")];
  const whole = await tree(assets, [a, b, a]);
  const kernel = await layer(assets, "kernel", { kind: AssetKind.KERNEL });
  const targetDir = join(assets.jails, "vm_1");
  const request = {
    tenantId,
    leaseKey: "vm_1",
    placements: [
      { assetId: whole.assetId, fileName: "rootfs" },
      { assetId: kernel.assetId, fileName: "kernel" },
    ],
    targetDir,
    leaseMs: 30_000n,
  };
  const metald = assets.as("metald");
  const { lease, staged } = await metald.prepareAssets(request);
  const expected = [
    [whole, "rootfs", "tree"],
    [a, "rootfs.1", "aaaa"],
    [b, "rootfs.2", "bb"],
    [a, "rootfs.3", "aaaa"],
    [kernel, "kernel", "kernel"],
  ] as const;
  assert.deepEqual(
    staged.map(({ assetId, path, digest, method }) => [assetId, path, digest, method]),
    expected.map(([asset, name]) => [asset.assetId, join(targetDir, name), asset.digest, StagingMethod.HARD_LINK]),
  );
  for (const [asset, name, text] of expected) {
    assert.equal(readFileSync(join(targetDir, name), "utf8"), text);
    const blob = statSync(assets.blobPath(asset.digest as `sha256:${string}`));
    assert.equal(statSync(join(targetDir, name)).ino, blob.ino);
  }
  assert.deepEqual(lease?.assetIds.toSorted(), [whole.assetId, kernel.assetId].toSorted());
  const again = await metald.prepareAssets(request);
  assert.equal(again.lease?.leaseId, lease?.leaseId);
  assert.deepEqual(again.staged, staged);
  await rejectsWith(assets.as("builderd").deleteAsset({ tenantId, assetId: whole.assetId }), "ASSET_IN_USE", /lease/);
});

test("a part's place that another placement wants is refused, before anything is staged", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const whole = await tree(assets, [await layer(assets, "a")]);
  const other = await layer(assets, "other");
  const targetDir = join(assets.jails, "vm_1");
  const placements = [
    { assetId: whole.assetId, fileName: "rootfs" },
    { assetId: other.assetId, fileName: "rootfs.1" },
  ];
  const call = assets.as("metald").prepareAssets({ tenantId, leaseKey: "vm_1", placements, targetDir, leaseMs: 1000n });
  await rejectsWith(call, "INVALID_REQUEST", /rootfs\.1/);
  assert.equal(existsSync(targetDir), false);
  assert.deepEqual((await assets.as("metald").listLeases({ tenantId })).leases, []);
});

test("a whole is not leased while a part is wrong, and the error names the part", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const [a, b] = [await layer(assets, "a"), await layer(assets, "b")];
  const whole = await tree(assets, [a, b]);
  damage(assets, b);
  await assets.manager.scrubber.pass(new AbortController().signal);
  assert.equal((await get(assets, b)).state, AssetState.ERROR);
  await rejectsWith(
    prepare(assets, whole.assetId),
    "ASSET_NOT_AVAILABLE",
    new RegExp(`the part ${b.assetId} of asset ${whole.assetId} is in state error`),
  );
  assert.deepEqual((await assets.as("metald").listLeases({ tenantId })).leases, []);
  assert.equal(existsSync(join(assets.jails, "vm_1")), false);
});

test("parts cannot be deleted while anything is made of them, complete or not", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const builder = assets.as("builderd");
  const a = await layer(assets, "a");
  const refused = (partOf: Asset) =>
    rejectsWith(
      builder.deleteAsset({ tenantId, assetId: a.assetId }),
      "ASSET_IN_USE",
      new RegExp(`part of .* ${partOf.assetId}`),
    );
  const begun = await begin(assets, { partIds: [a.assetId] });
  await refused(begun);
  const whole = await fill(assets, begun, "tree");
  await refused(whole);
  await builder.deleteAsset({ tenantId, assetId: whole.assetId });
  await refused(whole);
  await collect(assets);
  await refused(whole);
  assert.deepEqual((await collect(assets)).sweptAssetIds, [whole.assetId]);
  const other = await begin(assets, { partIds: [a.assetId] });
  await refused(other);
  await builder.cancelUpload({ tenantId, assetId: other.assetId });
  assert.equal((await builder.deleteAsset({ tenantId, assetId: a.assetId })).state, AssetState.DELETING);
});

test("collection leaves parts alone while a whole lives, and follows the usual rule when it is gone", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const [a, b, c] = [await layer(assets, "a"), await layer(assets, "b"), await layer(assets, "c")];
  const first = await tree(assets, [a, b], { text: "first" });
  const second = await tree(assets, [b, c], { text: "second" });
  const builder = assets.as("builderd");
  assets.advance(graceMs + 1);
  for (const whole of [first, second]) await prepare(assets, whole.assetId, { key: whole.assetId, leaseMs: 1000 });
  assets.advance(2000);
  assert.deepEqual((await collect(assets)).markedAssetIds, [], "the use of a whole is that of its parts");
  assets.advance(graceMs);
  await prepare(assets, second.assetId, { key: "vm_2", leaseMs: 1000 });
  assets.advance(2000);
  assert.deepEqual((await collect(assets)).markedAssetIds, [first.assetId]);
  const operator = assets.as("operator");
  const said = await operator.collectGarbage({ dryRun: true });
  const did = await collect(assets);
  assert.deepEqual([said.sweptAssetIds, said.markedAssetIds], [[first.assetId], [a.assetId]], "b is part of second");
  assert.deepEqual([did.sweptAssetIds, did.markedAssetIds], [said.sweptAssetIds, said.markedAssetIds]);
  assert.equal(said.freedBytes, did.freedBytes);
  // A marked part that is taken into use again is rescued.
  const third = await begin(assets, { uploadKey: "third", partIds: [a.assetId] });
  assert.deepEqual((await collect(assets)).sweptAssetIds, []);
  await builder.cancelUpload({ tenantId, assetId: third.assetId });
  await builder.deleteAsset({ tenantId, assetId: second.assetId });
  assets.advance(graceMs + 1);
  assert.deepEqual((await collect(assets)).markedAssetIds.toSorted(), [second.assetId, a.assetId].toSorted());
  const third2 = await collect(assets);
  assert.deepEqual(third2.sweptAssetIds.toSorted(), [second.assetId, a.assetId].toSorted());
  assert.deepEqual(third2.markedAssetIds.toSorted(), [b.assetId, c.assetId].toSorted());
  assert.deepEqual((await collect(assets)).sweptAssetIds.toSorted(), [b.assetId, c.assetId].toSorted());
  assert.deepEqual((await builder.listAssets({ tenantId })).assets, []);
  await assets.manager.removal.pass(new AbortController().signal);
  assert.deepEqual(await Array.fromAsync(assets.blobs.list()), []);
});

test("an upload that expires lets its parts go", async () => {
  await using assets = await openFixture();
  const a = await layer(assets, "a");
  const begun = await begin(assets, { partIds: [a.assetId] });
  assets.advance(uploadLifetimeMs + 1);
  const said = await assets.as("operator").collectGarbage({ dryRun: true });
  assert.deepEqual([said.sweptAssetIds, said.markedAssetIds], [[begun.assetId], [a.assetId]]);
  const did = await collect(assets);
  assert.deepEqual([did.sweptAssetIds, did.markedAssetIds], [[begun.assetId], [a.assetId]]);
  assert.deepEqual((await collect(assets)).sweptAssetIds, [a.assetId]);
  assert.deepEqual(readdirSync(join(assets.dir, "blobs", "incoming")), []);
});
