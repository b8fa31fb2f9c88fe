import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetState, StagingMethod } from "@unkey/api/asset";
import { type ErrorReason, isServiceError, newId } from "@unkey/base";
import { bytes, digestOf, type Fixture, graceMs, openFixture, uploadOf } from "./fixture.ts";

async function rejectsWith(call: Promise<unknown>, reason: ErrorReason, message?: RegExp): Promise<void> {
  await assert.rejects(call, (error: unknown) => {
    assert.ok(isServiceError(error), String(error));
    assert.equal(error.reason, reason, error.message);
    if (message) assert.match(error.message, message);
    return true;
  });
}

async function contentOf(messages: AsyncIterable<{ readonly chunk: Uint8Array }>): Promise<string> {
  const parts: Uint8Array[] = [];
  for await (const { chunk } of messages) parts.push(chunk);
  return Buffer.concat(parts).toString();
}

function prepare(assets: Fixture, assetId: string, options: { key?: string; dir?: string; leaseMs?: number } = {}) {
  return assets.as("metald").prepareAssets({
    tenantId: assets.tenantId,
    leaseKey: options.key ?? "vm_1",
    placements: [{ assetId, fileName: "rootfs" }],
    targetDir: options.dir ?? join(assets.jails, "vm_1"),
    leaseMs: BigInt(options.leaseMs ?? 30_000),
  });
}

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
  assert.deepEqual(await Array.fromAsync(assets.blobs.list()), []);
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

test("preparing leases, links, and says how; the same key is the same lease", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const rootfs = await assets.as("builderd").uploadAsset(uploadOf(bytes("rootfs"), { tenantId }));
  const kernel = await assets.as("metald").uploadAsset(uploadOf(bytes("kernel"), { kind: AssetKind.KERNEL }));
  const metald = assets.actingFor(tenantId, "metald");
  const targetDir = join(assets.jails, "vm_1", "assets");
  const request = {
    tenantId,
    leaseKey: "vm_1",
    placements: [
      { assetId: kernel.assetId, fileName: "kernel" },
      { assetId: rootfs.assetId, fileName: "rootfs" },
    ],
    targetDir,
    leaseMs: 30_000n,
  };
  const first = await metald.prepareAssets(request);
  assert.deepEqual(
    first.staged.map((file) => [file.assetId, file.path, file.method]),
    [
      [kernel.assetId, join(targetDir, "kernel"), StagingMethod.HARD_LINK],
      [rootfs.assetId, join(targetDir, "rootfs"), StagingMethod.HARD_LINK],
    ],
  );
  assert.equal(readFileSync(join(targetDir, "rootfs"), "utf8"), "rootfs");
  assert.equal((await metald.getAsset({ tenantId, assetId: rootfs.assetId })).leaseCount, 1);

  rmSync(join(targetDir, "kernel"));
  assets.advance(10_000);
  const second = await metald.prepareAssets(request);
  assert.equal(second.lease?.leaseId, first.lease?.leaseId);
  assert.ok(second.lease!.expiresAtMs > first.lease!.expiresAtMs);
  assert.ok(existsSync(join(targetDir, "kernel")), "what is missing is staged");
  await rejectsWith(metald.prepareAssets({ ...request, placements: [request.placements[0]!] }), "LEASE_KEY_REUSED");
  const twice = [request.placements[0]!, { ...request.placements[1]!, fileName: "kernel" }];
  await rejectsWith(
    metald.prepareAssets({ ...request, leaseKey: "vm_2", placements: twice }),
    "INVALID_REQUEST",
    /same file name/,
  );
  await rejectsWith(
    metald.prepareAssets({ ...request, leaseKey: "vm_3", targetDir: "/etc" }),
    "STAGING_TARGET_REFUSED",
  );
  const { leases } = await metald.listLeases({ tenantId });
  assert.deepEqual(
    leases.map((lease) => lease.leaseKey),
    ["vm_1"],
    "a refused preparation leaves no lease",
  );

  const leaseId = first.lease!.leaseId;
  assert.ok((await metald.renewLease({ tenantId, leaseId, leaseMs: 60_000n })).expiresAtMs > second.lease!.expiresAtMs);
  await metald.releaseLease({ tenantId, leaseId });
  await metald.releaseLease({ tenantId, leaseId });
  await rejectsWith(metald.renewLease({ tenantId, leaseId, leaseMs: 1000n }), "LEASE_NOT_FOUND");
  assert.ok(existsSync(join(targetDir, "rootfs")), "a running VM keeps its files");
});

test("blobs that were changed behind our back are not staged", async () => {
  await using assets = await openFixture();
  const { assetId, digest } = await assets.as("builderd").uploadAsset(uploadOf(bytes("original")));
  const path = assets.blobPath(digest as `sha256:${string}`);
  chmodSync(path, 0o644);
  writeFileSync(path, "tampered");
  await rejectsWith(prepare(assets, assetId), "ASSET_CORRUPT");
  assert.deepEqual((await assets.as("metald").listLeases({ tenantId: assets.tenantId })).leases, []);
});

test("deleting is refused while a lease lives, and sweeping takes two passes", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const { assetId, digest } = await assets.as("builderd").uploadAsset(uploadOf(bytes("short-lived"), { tenantId }));
  const { lease } = await prepare(assets, assetId);
  const gateway = assets.actingFor(tenantId, "gatewayd");
  await rejectsWith(gateway.deleteAsset({ tenantId, assetId }), "ASSET_IN_USE");
  await assets.as("metald").releaseLease({ tenantId, leaseId: lease!.leaseId });
  assert.equal((await gateway.deleteAsset({ tenantId, assetId })).state, AssetState.DELETING);
  assert.equal((await gateway.deleteAsset({ tenantId, assetId })).state, AssetState.DELETING);
  await rejectsWith(prepare(assets, assetId, { key: "vm_2" }), "ASSET_NOT_AVAILABLE");

  const operator = assets.as("operator");
  const dry = await operator.collectGarbage({ dryRun: true });
  assert.deepEqual([dry.markedAssetIds, dry.sweptAssetIds], [[assetId], []]);
  const first = await operator.collectGarbage({});
  assert.deepEqual([first.markedAssetIds, first.sweptAssetIds, first.freedBytes], [[assetId], [], 0n]);
  assert.ok(existsSync(assets.blobPath(digest as `sha256:${string}`)));
  const second = await operator.collectGarbage({});
  assert.deepEqual([second.markedAssetIds, second.sweptAssetIds, second.freedBytes], [[], [assetId], 11n]);
  assert.equal(existsSync(assets.blobPath(digest as `sha256:${string}`)), false);
  await rejectsWith(gateway.getAsset({ tenantId, assetId }), "ASSET_NOT_FOUND");
  assert.equal(readFileSync(join(assets.jails, "vm_1", "rootfs"), "utf8"), "short-lived");
});

test("idle assets age out, a lease rescues a marked one, reading does not, the platform's stay", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const builder = assets.actingFor(tenantId, "builderd");
  const used = await builder.uploadAsset(uploadOf(bytes("used"), { tenantId }));
  const read = await builder.uploadAsset(uploadOf(bytes("read"), { tenantId }));
  const kernel = await assets.as("metald").uploadAsset(uploadOf(bytes("kernel")));
  const operator = assets.as("operator");
  assets.advance(graceMs + 1);
  assert.deepEqual((await operator.collectGarbage({})).markedAssetIds, [used.assetId, read.assetId].toSorted());
  await prepare(assets, used.assetId, { leaseMs: 2000 });
  await contentOf(assets.as("metald").downloadAsset({ tenantId, assetId: read.assetId }));
  assert.deepEqual((await operator.collectGarbage({})).sweptAssetIds, [read.assetId]);
  assets.advance(3000);
  assert.deepEqual((await operator.collectGarbage({})).markedAssetIds, [], "the lease ended, its use is recent");
  assets.advance(graceMs + 1);
  assert.deepEqual((await operator.collectGarbage({})).markedAssetIds, [used.assetId]);
  assert.deepEqual((await operator.collectGarbage({})).sweptAssetIds, [used.assetId]);
  assert.equal((await assets.as("metald").getAsset({ assetId: kernel.assetId })).state, AssetState.AVAILABLE);
});

test("a blob that two assets share outlives the first", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const other = newId("tenant");
  const content = bytes("shared");
  const mine = await assets.actingFor(tenantId, "builderd").uploadAsset(uploadOf(content, { tenantId }));
  await assets.actingFor(other, "builderd").uploadAsset(uploadOf(content, { tenantId: other }));
  await assets.actingFor(tenantId, "gatewayd").deleteAsset({ tenantId, assetId: mine.assetId });
  await assets.as("operator").collectGarbage({});
  const { sweptAssetIds, freedBytes } = await assets.as("operator").collectGarbage({});
  assert.deepEqual([sweptAssetIds, freedBytes], [[mine.assetId], 0n]);
  assert.ok(existsSync(assets.blobPath(digestOf(content))));
});

test("uploads and collection of the same bytes at the same time end with the bytes stored", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const content = bytes("contended");
  const builder = assets.actingFor(tenantId, "builderd");
  for (let round = 0; round < 20; round++) {
    const { assetId } = await builder.uploadAsset(uploadOf(content, { tenantId, name: `round ${round}` }));
    await builder.deleteAsset({ tenantId, assetId });
    await assets.service.collect(new AbortController().signal);
    const results = await Promise.allSettled([
      builder.uploadAsset(uploadOf(content, { tenantId, name: "kept" })),
      assets.service.collect(new AbortController().signal),
      builder.uploadAsset(uploadOf(content, { tenantId, name: "kept" })),
    ]);
    for (const result of results) {
      if (result.status === "rejected") assert.ok(isServiceError(result.reason, "ABORTED"), String(result.reason));
    }
    const { assets: kept } = await builder.listAssets({ tenantId });
    for (const asset of kept.filter((one) => one.state === AssetState.AVAILABLE)) {
      assert.equal(
        await contentOf(assets.as("metald").downloadAsset({ tenantId, assetId: asset.assetId })),
        "contended",
      );
    }
    for (const asset of kept) await builder.deleteAsset({ tenantId, assetId: asset.assetId });
  }
});

test("a query with an image to build says that it does not build", async () => {
  await using assets = await openFixture();
  const gateway = assets.as("gatewayd");
  assert.deepEqual((await gateway.queryAssets({ query: {} })).assets, []);
  await rejectsWith(gateway.queryAssets({ query: {}, buildImage: "nginx" }), "UNIMPLEMENTED");
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
  await assets.service.heal(new AbortController().signal);
  const states = [];
  for (const { assetId } of [gone, short, whole]) states.push((await builder.getAsset({ assetId })).state);
  assert.deepEqual(states, [AssetState.ERROR, AssetState.ERROR, AssetState.AVAILABLE]);
  mkdirSync(join(assets.dir, "blobs", "sha256", "zz"), { recursive: true }); // foreign things are left alone
  assert.equal((await Array.fromAsync(assets.blobs.list())).length, 2);
});
