import assert from "node:assert/strict";
import { chmodSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetState, StagingMethod } from "@unkey/api/asset";
import { isServiceError, newId } from "@unkey/base";
import { bytes, contentOf, digestOf, graceMs, openFixture, prepare, rejectsWith, uploadOf } from "./fixture.ts";

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
  assert.deepEqual([second.markedCount, second.sweptCount], [0n, 1n]);
  await assets.manager.removal.pass(new AbortController().signal);
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
    await assets.manager.collector.collect(new AbortController().signal);
    const results = await Promise.allSettled([
      assets.manager.removal.pass(new AbortController().signal),
      builder.uploadAsset(uploadOf(content, { tenantId, name: "kept" })),
      assets.manager.collector.collect(new AbortController().signal),
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
