import assert from "node:assert/strict";
import { chmodSync, linkSync, mkdirSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetState } from "@unkey/api/asset";
import { bytes, contentOf, digestOf, type Fixture, openFixture, rejectsWith } from "./fixture.ts";

/*
 * Files of the same host that become uploads without being sent.
 */

const text = "a root filesystem";
const content = { digest: digestOf(bytes(text)), sizeBytes: BigInt(text.length) };

async function begin(assets: Fixture): Promise<string> {
  const { tenantId } = assets;
  const wish = { tenantId, uploadKey: "key", name: "image", kind: AssetKind.ROOTFS, labels: {} };
  return (await assets.as("builderd").beginUpload(wish)).assetId;
}

function hand(assets: Fixture, assetId: string, sourcePath: string) {
  const { tenantId } = assets;
  return assets.as("builderd").appendUpload(
    (async function* () {
      yield await Promise.resolve({
        part: { case: "header" as const, value: { tenantId, assetId, offset: 0n, sourcePath } },
      });
    })(),
  );
}

function source(assets: Fixture, name = "image", mode = 0o400): string {
  const path = join(assets.intake, name);
  writeFileSync(path, text);
  chmodSync(path, mode);
  return path;
}

test("a file of the intake directory becomes the asset, the very file, and outlives its first name", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const path = source(assets);
  const { ino } = statSync(path);
  const assetId = await begin(assets);
  assert.equal((await hand(assets, assetId, path)).receivedBytes, BigInt(text.length));
  await rejectsWith(hand(assets, assetId, path), "UPLOAD_OFFSET_MISMATCH");
  const asset = await assets.as("builderd").finishUpload({ tenantId, assetId, ...content });
  rmSync(path);
  assert.equal(asset.state, AssetState.AVAILABLE);
  assert.equal(statSync(assets.blobPath(content.digest)).ino, ino);
  assert.equal(await contentOf(assets.as("builderd").downloadAsset({ tenantId, assetId })), text);
});

test("its digest is checked as that of sent bytes", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const assetId = await begin(assets);
  await hand(assets, assetId, source(assets));
  const wrong = { ...content, digest: digestOf(bytes("other")) };
  await rejectsWith(assets.as("builderd").finishUpload({ tenantId, assetId, ...wrong }), "ASSET_DIGEST_MISMATCH");
});

test("quotas and sizes hold", async () => {
  await using small = await openFixture({ maxAssetBytes: 4 });
  await rejectsWith(hand(small, await begin(small), source(small)), "ASSET_TOO_LARGE");
  await using poor = await openFixture({ tenantQuotaBytes: 4 });
  await rejectsWith(hand(poor, await begin(poor), source(poor)), "ASSET_QUOTA_EXCEEDED");
});

test("files elsewhere, links, and files that others can write to are refused", async () => {
  await using assets = await openFixture();
  const assetId = await begin(assets);
  const refused = (path: string, why: RegExp) => rejectsWith(hand(assets, assetId, path), "ASSET_SOURCE_REFUSED", why);
  const outside = join(assets.dir, "secret");
  writeFileSync(outside, "secret", { mode: 0o400 });
  await refused(outside, /below an intake directory/);
  await refused(join(assets.intake, "..", "secret"), /below an intake directory/);
  symlinkSync(outside, join(assets.intake, "link"));
  await refused(join(assets.intake, "link"), /below an intake directory/);
  await refused(join(assets.intake, "nothing"), /cannot be found/);
  await refused(source(assets, "writable", 0o622), /others can write/);
  for (const mode of [0o600, 0o200, 0o640]) {
    const twice = source(assets, "twice", mode);
    linkSync(twice, join(assets.intake, "again"));
    await refused(twice, /several names/);
    for (const name of ["twice", "again"]) rmSync(join(assets.intake, name));
  }
  mkdirSync(join(assets.intake, "directory"));
  await refused(join(assets.intake, "directory"), /not a file/);
});

test("a file with several names that nobody may write to is taken, and its other names stay", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const path = source(assets, "layer", 0o444);
  linkSync(path, join(assets.intake, "cached"));
  const assetId = await begin(assets);
  await hand(assets, assetId, path);
  await assets.as("builderd").finishUpload({ tenantId, assetId, ...content });
  assert.equal(statSync(assets.blobPath(content.digest)).ino, statSync(join(assets.intake, "cached")).ino);
  assert.equal(statSync(path).nlink, 3);
});
