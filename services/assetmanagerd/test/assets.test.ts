import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetState } from "@unkey/api/asset";
import { newId } from "@unkey/base";
import { bytes, contentOf, digestOf, openFixture, prepare, rejectsWith, uploadOf } from "./fixture.ts";

test("an uploaded asset is stored once by content, privately, and found by id, kind and label", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const builder = assets.actingFor(tenantId, "builderd");
  const content = bytes("a root filesystem");
  const asset = await builder.uploadAsset(uploadOf(content, { tenantId, labels: { app: "web", arch: "x64" } }));
  assert.equal(asset.state, AssetState.AVAILABLE);
  assert.equal(asset.digest, digestOf(content));
  assert.equal(asset.sizeBytes, BigInt(content.length));
  const path = assets.blobPath(digestOf(content));
  assert.equal(readFileSync(path, "utf8"), "a root filesystem");
  assert.equal(statSync(path).mode & 0o777, 0o444);
  assert.equal(statSync(join(assets.dir, "blobs")).mode & 0o777, 0o700);

  const { ino } = statSync(path);
  const again = await builder.uploadAsset(uploadOf(content, { tenantId, labels: { arch: "x64", app: "web" } }));
  assert.equal(again.assetId, asset.assetId, "the same declaration is the same asset");
  const other = await builder.uploadAsset(uploadOf(content, { tenantId, name: "another" }));
  assert.notEqual(other.assetId, asset.assetId);
  assert.equal(statSync(path).ino, ino, "the blob was not written again");
  assert.deepEqual(readdirSync(join(assets.dir, "blobs", "incoming")), []);

  const found = await builder.listAssets({ tenantId, kind: AssetKind.ROOTFS, labels: { app: "web" } });
  assert.deepEqual(
    found.assets.map((one) => one.assetId),
    [asset.assetId],
  );
  assert.deepEqual((await builder.listAssets({ tenantId, kind: AssetKind.KERNEL })).assets, []);
  assert.deepEqual((await builder.listAssets({ tenantId, labels: { app: "web", arch: "arm" } })).assets, []);
  assert.deepEqual((await builder.getAsset({ tenantId, assetId: asset.assetId })).labels, { app: "web", arch: "x64" });
  const usage = await builder.getStorageUsage({ tenantId });
  assert.deepEqual([usage.assetCount, usage.storedBytes], [2n, BigInt(content.length * 2)]);
});

test("an empty asset is an asset", async () => {
  await using assets = await openFixture();
  const { assetId } = await assets.as("builderd").uploadAsset(uploadOf(bytes("")));
  assert.equal(await contentOf(assets.as("metald").downloadAsset({ assetId })), "");
});

test("pages go from new to old without gap or repeat", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const client = assets.actingFor(tenantId, "builderd");
  const ids: string[] = [];
  for (let i = 0; i < 5; i++) {
    assets.advance(1);
    ids.unshift((await client.uploadAsset(uploadOf(bytes(`asset ${i}`), { tenantId }))).assetId);
  }
  const seen: string[] = [];
  let pageToken = "";
  do {
    const page = await client.listAssets({ tenantId, pageSize: 2, pageToken });
    seen.push(...page.assets.map((one) => one.assetId));
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  assert.deepEqual(seen, ids);
  await rejectsWith(client.listAssets({ tenantId, pageToken: "garbage" }), "INVALID_REQUEST", /page_token/);
});

test("bytes that are not what was declared are refused and leave nothing", async () => {
  await using assets = await openFixture({ maxAssetBytes: 100 });
  const client = assets.as("builderd");
  const content = bytes("some content that is sent");
  const upload = (header: Parameters<typeof uploadOf>[1]) => client.uploadAsset(uploadOf(content, header));
  await rejectsWith(upload({ digest: digestOf(bytes("other")) }), "ASSET_DIGEST_MISMATCH");
  await rejectsWith(upload({ sizeBytes: 5n }), "ASSET_SIZE_MISMATCH", /more than the declared 5/);
  await rejectsWith(upload({ sizeBytes: 50n }), "ASSET_SIZE_MISMATCH", /25 bytes arrived, 50/);
  await rejectsWith(upload({ sizeBytes: 101n }), "ASSET_TOO_LARGE");
  await rejectsWith(upload({ digest: "sha256:short" }), "INVALID_REQUEST", /digest/);
  await rejectsWith(upload({ kind: AssetKind.UNSPECIFIED }), "INVALID_REQUEST", /kind/);
  await rejectsWith(upload({ labels: { x: "y".repeat(2000) } }), "INVALID_REQUEST", /labels/);
  const [header, chunk] = await Array.fromAsync(uploadOf(bytes("1234567")));
  await rejectsWith(client.uploadAsset(messages(chunk)), "INVALID_REQUEST", /not the header/);
  await rejectsWith(client.uploadAsset(messages(header, header)), "INVALID_REQUEST", /second header/);
  await rejectsWith(client.uploadAsset(messages()), "INVALID_REQUEST", /not the header/);
  assert.deepEqual(readdirSync(join(assets.dir, "blobs", "incoming")), []);
  assert.deepEqual((await Array.fromAsync(assets.blobs.list())).flat(), []);
  assert.deepEqual((await client.listAssets({})).assets, []);
});

async function* messages<T>(...parts: T[]) {
  for (const part of parts) yield await Promise.resolve(part as NonNullable<T>);
}

test("a tenant sees its own assets and the platform's, and nobody else's", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const other = newId("tenant");
  const kernel = await assets.as("metald").uploadAsset(uploadOf(bytes("kernel"), { kind: AssetKind.KERNEL }));
  const mine = await assets.actingFor(tenantId, "builderd").uploadAsset(uploadOf(bytes("mine"), { tenantId }));
  const stranger = assets.actingFor(other, "gatewayd");
  assert.deepEqual(
    (await stranger.listAssets({ tenantId: other })).assets.map((one) => one.assetId),
    [kernel.assetId],
  );
  assert.equal((await stranger.getAsset({ tenantId: other, assetId: kernel.assetId })).name, "an asset");
  await rejectsWith(stranger.getAsset({ tenantId: other, assetId: mine.assetId }), "ASSET_NOT_FOUND");
  await rejectsWith(stranger.getAsset({ tenantId, assetId: mine.assetId }), "TENANT_MISMATCH");
  await rejectsWith(stranger.deleteAsset({ tenantId: other, assetId: mine.assetId }), "ASSET_NOT_FOUND");
  await rejectsWith(stranger.deleteAsset({ tenantId: other, assetId: kernel.assetId }), "ASSET_NOT_FOUND");
  const strangersMetald = assets.actingFor(other, "metald");
  await rejectsWith(
    contentOf(strangersMetald.downloadAsset({ tenantId: other, assetId: mine.assetId })),
    "ASSET_NOT_FOUND",
  );
  await rejectsWith(
    strangersMetald.prepareAssets({
      tenantId: other,
      leaseKey: "vm_x",
      placements: [{ assetId: mine.assetId, fileName: "rootfs" }],
      targetDir: join(assets.jails, "vm_x"),
      leaseMs: 1000n,
    }),
    "ASSET_NOT_FOUND",
  );
  assert.equal(existsSync(join(assets.jails, "vm_x")), false);
  const { lease } = await prepare(assets, mine.assetId);
  await rejectsWith(
    strangersMetald.renewLease({ tenantId: other, leaseId: lease!.leaseId, leaseMs: 1000n }),
    "LEASE_NOT_FOUND",
  );
  await strangersMetald.releaseLease({ tenantId: other, leaseId: lease!.leaseId });
  assert.deepEqual((await stranger.listLeases({ tenantId: other })).leases, []);
  assert.equal((await assets.as("metald").listLeases({ tenantId, assetId: mine.assetId })).leases.length, 1);
});

test("knowing a digest is not having the bytes", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const content = bytes("a secret image");
  const mine = await assets.actingFor(tenantId, "builderd").uploadAsset(uploadOf(content, { tenantId }));
  const header = {
    name: "copy",
    kind: AssetKind.ROOTFS,
    digest: mine.digest,
    sizeBytes: BigInt(content.length),
    labels: { copied: "yes" },
  };
  const other = newId("tenant");
  const thief = assets.actingFor(other, "builderd");
  await rejectsWith(thief.registerAsset({ header: { ...header, tenantId: other } }), "ASSET_NOT_FOUND");
  await rejectsWith(
    thief.uploadAsset(uploadOf(bytes("not the bytes!"), { tenantId: other, digest: mine.digest })),
    "ASSET_DIGEST_MISMATCH",
  );
  const owner = assets.actingFor(tenantId, "builderd");
  const copy = await owner.registerAsset({ header: { ...header, tenantId } });
  assert.notEqual(copy.assetId, mine.assetId);
  assert.equal((await owner.registerAsset({ header: { ...header, tenantId } })).assetId, copy.assetId);
  await rejectsWith(owner.registerAsset({ header: { ...header, tenantId, sizeBytes: 1n } }), "ASSET_SIZE_MISMATCH");
});

test("a tenant's quota holds, the platform has none", async () => {
  await using assets = await openFixture({ tenantQuotaBytes: 20 });
  const { tenantId } = assets;
  const client = assets.actingFor(tenantId, "builderd");
  await client.uploadAsset(uploadOf(bytes("0123456789"), { tenantId }));
  await rejectsWith(client.uploadAsset(uploadOf(bytes("abcdefghijk"), { tenantId })), "ASSET_QUOTA_EXCEEDED");
  await client.uploadAsset(uploadOf(bytes("abcdefghij"), { tenantId }));
  await rejectsWith(client.uploadAsset(uploadOf(bytes("z"), { tenantId })), "ASSET_QUOTA_EXCEEDED");
  await assets.as("metald").uploadAsset(uploadOf(bytes("x".repeat(100))));
  assert.equal((await client.getStorageUsage({ tenantId })).quotaBytes, 20n);
});

test("a download comes from any offset and notices wrong bytes", async () => {
  await using assets = await openFixture();
  const content = bytes("0123456789");
  const { assetId, digest } = await assets.as("builderd").uploadAsset(uploadOf(content));
  const metald = assets.as("metald");
  assert.equal(await contentOf(metald.downloadAsset({ assetId })), "0123456789");
  assert.equal(await contentOf(metald.downloadAsset({ assetId, offset: 7n })), "789");
  assert.equal(await contentOf(metald.downloadAsset({ assetId, offset: 10n })), "");
  await rejectsWith(contentOf(metald.downloadAsset({ assetId, offset: 11n })), "INVALID_REQUEST", /offset/);
  const path = assets.blobPath(digest as `sha256:${string}`);
  chmodSync(path, 0o644);
  writeFileSync(path, "0123456780");
  await rejectsWith(contentOf(metald.downloadAsset({ assetId })), "ASSET_CORRUPT");
  assert.equal((await metald.getAsset({ assetId })).state, AssetState.ERROR);
  await rejectsWith(prepare(assets, assetId), "ASSET_NOT_AVAILABLE");
});

test("damage while we were away makes an asset unusable", async () => {
  await using assets = await openFixture();
  const builder = assets.as("builderd");
  const gone = await builder.uploadAsset(uploadOf(bytes("gone")));
  const short = await builder.uploadAsset(uploadOf(bytes("cut short")));
  const whole = await builder.uploadAsset(uploadOf(bytes("whole")));
  rmSync(assets.blobPath(digestOf(bytes("gone"))));
  const path = assets.blobPath(digestOf(bytes("cut short")));
  chmodSync(path, 0o644);
  writeFileSync(path, "cut");
  await assets.manager.recover(new AbortController().signal);
  const states = [];
  for (const { assetId } of [gone, short, whole]) states.push((await builder.getAsset({ assetId })).state);
  assert.deepEqual(states, [AssetState.ERROR, AssetState.ERROR, AssetState.AVAILABLE]);
  mkdirSync(join(assets.dir, "blobs", "sha256", "zz"), { recursive: true }); // foreign things are left alone
  assert.equal((await Array.fromAsync(assets.blobs.list())).flat().length, 2);
});
