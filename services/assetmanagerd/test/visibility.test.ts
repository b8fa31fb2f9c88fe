import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetService } from "@unkey/api/asset";
import { newId } from "@unkey/base";
import { bytes, contentOf, openFixture, prepare, rejectsWith, uploadOf } from "./fixture.ts";

test("no RPC tells or lets a tenant do anything with another tenant's ids", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const owner = assets.actingFor(tenantId, "builderd");
  const mine = await owner.uploadAsset(uploadOf(bytes("mine"), { tenantId }));
  const upload = await owner.beginUpload({ tenantId, uploadKey: "key", name: "half", kind: AssetKind.ROOTFS });
  const assetId = mine.assetId;
  const { lease } = await prepare(assets, assetId);
  const leaseId = lease?.leaseId ?? "";
  const other = newId("tenant");
  const as = { builderd: assets.actingFor(other, "builderd"), metald: assets.actingFor(other, "metald") };
  const gatewayd = assets.actingFor(other, "gatewayd");
  const header = (named: { assetId: string; tenantId: string }) => ({ ...named, offset: 0n });
  const declared = { name: "x", kind: AssetKind.ROOTFS, digest: mine.digest, sizeBytes: mine.sizeBytes };
  const placements = [{ assetId, fileName: "rootfs" }];
  const staging = { leaseKey: "vm_x", placements, targetDir: join(assets.jails, "vm_x"), leaseMs: 1000n };

  /** Every RPC that takes an id or a digest, for the tenant named. */
  const attempts = (named: string): Record<string, () => Promise<unknown>> => ({
    uploadAsset: () => as.builderd.uploadAsset(uploadOf(bytes("about"), { tenantId: named, attachedTo: assetId })),
    registerAsset: () => as.builderd.registerAsset({ header: { ...declared, tenantId: named } }),
    beginUpload: () =>
      as.builderd.beginUpload({
        tenantId: named,
        uploadKey: "a",
        name: "a",
        kind: AssetKind.SBOM,
        attachedTo: assetId,
      }),
    appendUpload: () =>
      as.builderd.appendUpload(
        (async function* () {
          const value = header({ assetId: upload.assetId, tenantId: named });
          yield await Promise.resolve({ part: { case: "header" as const, value } });
        })(),
      ),
    finishUpload: () =>
      as.builderd.finishUpload({ tenantId: named, assetId: upload.assetId, digest: mine.digest, sizeBytes: 0n }),
    getAsset: () => as.builderd.getAsset({ tenantId: named, assetId }),
    downloadAsset: () => contentOf(as.builderd.downloadAsset({ tenantId: named, assetId })),
    prepareAssets: () => as.metald.prepareAssets({ tenantId: named, ...staging }),
    renewLease: () => as.metald.renewLease({ tenantId: named, leaseId, leaseMs: 1000n }),
    deleteAsset: () => as.builderd.deleteAsset({ tenantId: named, assetId }),
  });
  for (const [name, attempt] of Object.entries(attempts(other))) {
    await rejectsWith(attempt(), name === "renewLease" ? "LEASE_NOT_FOUND" : "ASSET_NOT_FOUND");
  }
  /** Those that answer emptily, or succeed because there is nothing to do. */
  const quiet = (named: string): Record<string, () => Promise<unknown>> => ({
    listAssets: async () => {
      for (const more of [{}, { digest: mine.digest }, { name: mine.name }, { attachedTo: assetId }]) {
        assert.deepEqual((await gatewayd.listAssets({ tenantId: named, ...more })).assets, []);
      }
    },
    queryAssets: async () => {
      const found = await gatewayd.queryAssets({ query: { tenantId: named, digest: mine.digest } });
      assert.deepEqual(found.assets, []);
    },
    listLeases: async () => {
      assert.deepEqual((await gatewayd.listLeases({ tenantId: named })).leases, []);
      assert.deepEqual((await gatewayd.listLeases({ tenantId: named, assetId })).leases, []);
    },
    cancelUpload: () => as.builderd.cancelUpload({ tenantId: named, assetId: upload.assetId }),
    releaseLease: () => as.metald.releaseLease({ tenantId: named, leaseId }),
    getStorageUsage: async () => {
      assert.equal((await gatewayd.getStorageUsage({ tenantId: named })).assetCount, 0n);
    },
  });
  for (const attempt of Object.values(quiet(other))) await attempt();
  // The owner's name in a stranger's call is refused before anything is looked up.
  const named = { ...attempts(tenantId), ...quiet(tenantId) };
  for (const attempt of Object.values(named)) await rejectsWith(attempt(), "TENANT_MISMATCH");
  const operatorOnly = ["collectGarbage"]; // names no tenant and no id
  assert.deepEqual(
    [...Object.keys(named), ...operatorOnly].toSorted(),
    AssetService.methods.map(({ localName }) => localName).toSorted(),
    "every RPC is tried",
  );

  assert.equal((await owner.getAsset({ tenantId, assetId: upload.assetId })).receivedBytes, 0n);
  assert.equal((await assets.as("metald").listLeases({ tenantId, assetId })).leases.length, 1);
  assert.equal((await owner.getStorageUsage({ tenantId })).assetCount, 2n);
  assert.equal((await as.builderd.getStorageUsage({ tenantId: other })).assetCount, 0n);
});

test("what the platform is still uploading is nobody else's business", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const half = await assets.as("metald").beginUpload({ uploadKey: "kernel", name: "kernel", kind: AssetKind.KERNEL });
  const client = assets.actingFor(tenantId, "metald");
  assert.deepEqual((await client.listAssets({ tenantId })).assets, []);
  await rejectsWith(client.getAsset({ tenantId, assetId: half.assetId }), "ASSET_NOT_FOUND");
  await client.cancelUpload({ tenantId, assetId: half.assetId });
  assert.equal((await assets.as("metald").getAsset({ assetId: half.assetId })).assetId, half.assetId);
});
