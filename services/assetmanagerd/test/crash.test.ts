import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { AssetKind, AssetState } from "@unkey/api/asset";
import { bytes, contentOf, digestOf, openFixture, rejectsWith, uploadOf } from "./fixture.ts";

const content = bytes("crashing content");
const signal = new AbortController().signal;

function temporary(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), "assets-crash-"));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

async function crash(dir: string, point: string, assetId = ""): Promise<void> {
  const script = new URL("./crash-child.ts", import.meta.url).pathname;
  const child = spawn(process.execPath, [script, dir, point, assetId], { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
  const [, killedBy] = (await once(child, "close")) as [number | null, string | null];
  assert.equal(killedBy, "SIGKILL", errors);
}

test("a crash while bytes arrive leaves nothing after the next start", async (t) => {
  const dir = temporary(t);
  await crash(dir, "while receiving");
  assert.equal(readdirSync(join(dir, "blobs", "incoming")).length, 1);
  await using assets = await openFixture({ dir });
  assert.deepEqual(readdirSync(join(dir, "blobs", "incoming")), []);
  assert.deepEqual((await Array.fromAsync(assets.blobs.list())).flat(), []);
  const asset = await assets.as("builderd").uploadAsset(uploadOf(content));
  assert.equal(asset.state, AssetState.AVAILABLE);
});

test("a crash between blob and row leaves a blob that the second pass removes, or that a new upload adopts", async (t) => {
  const dir = temporary(t);
  await crash(dir, "between blob and row");
  {
    await using assets = await openFixture({ dir });
    await assets.manager.recover(signal);
    assert.deepEqual((await assets.as("builderd").listAssets({})).assets, []);
    assert.ok(existsSync(assets.blobPath(digestOf(content))));
    assert.equal((await assets.manager.collector.collect(signal)).freedBytes, 0);
    assert.equal((await assets.manager.collector.collect(signal)).freedBytes, content.length);
    assert.equal(existsSync(assets.blobPath(digestOf(content))), false);
  }
  await crash(dir, "between blob and row");
  await using assets = await openFixture({ dir });
  await assets.manager.collector.collect(signal);
  await assets.as("builderd").uploadAsset(uploadOf(content));
  assert.equal((await assets.manager.collector.collect(signal)).freedBytes, 0);
  assert.ok(existsSync(assets.blobPath(digestOf(content))));
});

for (const point of ["between row and blob", "between blob and row, while removing"]) {
  test(`a crash ${point}, after sweeping, is finished later, and by a pass that keeps what came again`, async (t) => {
    const dir = temporary(t);
    {
      await using assets = await openFixture({ dir });
      const { assetId } = await assets.as("builderd").uploadAsset(uploadOf(content));
      await assets.as("builderd").deleteAsset({ assetId });
    }
    await crash(dir, point);
    const path = await (async () => {
      await using assets = await openFixture({ dir });
      await assets.manager.recover(signal);
      assert.deepEqual((await assets.as("builderd").listAssets({})).assets, []);
      assert.equal(existsSync(assets.blobPath(digestOf(content))), point === "between row and blob");
      await assets.manager.removal.pass(signal);
      assert.deepEqual(await assets.catalog.blobs.after("", 10), []);
      // The next crash comes in the same place.
      const { assetId } = await assets.as("builderd").uploadAsset(uploadOf(content));
      await assets.as("builderd").deleteAsset({ assetId });
      return assets.blobPath(digestOf(content));
    })();
    await crash(dir, point);
    await using assets = await openFixture({ dir });
    const { assetId } = await assets.as("builderd").uploadAsset(uploadOf(content));
    await assets.manager.removal.pass(signal);
    assert.ok(existsSync(path));
    assert.equal(await contentOf(assets.as("builderd").downloadAsset({ assetId })), "crashing content");
  });
}

test("a crash between lease and file leaves a lease that the same request takes over, or that expires", async (t) => {
  const dir = temporary(t);
  let assetId = "";
  {
    await using assets = await openFixture({ dir });
    ({ assetId } = await assets.as("metald").uploadAsset(uploadOf(content)));
  }
  await crash(dir, "between lease and file", assetId);
  await using assets = await openFixture({ dir });
  const metald = assets.as("metald");
  const [left] = (await metald.listLeases({})).leases;
  assert.equal(left?.leaseKey, "vm_1");
  const { lease, staged } = await metald.prepareAssets({
    leaseKey: "vm_1",
    placements: [{ assetId, fileName: "rootfs" }],
    targetDir: join(assets.jails, "vm_1"),
    leaseMs: 5000n,
  });
  assert.equal(lease?.leaseId, left.leaseId);
  assert.ok(existsSync(staged[0]?.path ?? ""));
  assets.advance(6000);
  assert.deepEqual((await metald.listLeases({})).leases, []);
  await assets.as("builderd").deleteAsset({ assetId });
  await assets.manager.collector.collect(signal);
  assert.deepEqual((await assets.manager.collector.collect(signal)).swept.ids, [assetId]);
});

for (const point of [
  "appending, between bytes and row",
  "finishing, before the blob",
  "finishing, between blob and row",
  "finishing, between row and file",
]) {
  test(`an upload in parts survives a crash while ${point}`, async (t) => {
    const dir = temporary(t);
    await crash(dir, point);
    await using assets = await openFixture({ dir });
    const builder = assets.as("builderd");
    const key = { uploadKey: "key", name: "crash", kind: AssetKind.ROOTFS };
    const begun = await builder.beginUpload(key);
    const { assetId, receivedBytes } = begun;
    if (begun.state === AssetState.UPLOADING) {
      assert.equal(receivedBytes, point.startsWith("appending") ? 0n : BigInt(content.length));
      const rest = content.subarray(Number(receivedBytes));
      if (rest.length > 0) await builder.appendUpload(parts(assetId, receivedBytes, rest));
      else await rejectsWith(builder.appendUpload(parts(assetId, 0n, content)), "UPLOAD_OFFSET_MISMATCH");
    }
    const sizeBytes = BigInt(content.length);
    const finished = await builder.finishUpload({ assetId, digest: digestOf(content), sizeBytes });
    assert.deepEqual([finished.assetId, finished.state], [assetId, AssetState.AVAILABLE]);
    assert.equal(await contentOf(builder.downloadAsset({ assetId })), "crashing content");
    assert.deepEqual(readdirSync(join(dir, "blobs", "incoming")), []);
    assert.equal((await builder.listAssets({})).assets.length, 1);
    await builder.deleteAsset({ assetId });
    for (let pass = 0; pass < 2; pass++) await assets.manager.collector.collect(signal);
    await assets.manager.removal.pass(signal);
    assert.deepEqual((await Array.fromAsync(assets.blobs.list())).flat(), []);
  });
}

test("what an upload is made of outlives a crash with it, and is still its own after the next start", async (t) => {
  const dir = temporary(t);
  const key = { uploadKey: "key", name: "crash", kind: AssetKind.ROOTFS };
  let partId = "";
  {
    await using assets = await openFixture({ dir });
    ({ assetId: partId } = await assets
      .as("builderd")
      .uploadAsset(uploadOf(bytes("layer"), { kind: AssetKind.LAYER })));
  }
  await crash(dir, "finishing, between blob and row", partId);
  await using assets = await openFixture({ dir });
  const builder = assets.as("builderd");
  await rejectsWith(builder.beginUpload(key), "UPLOAD_KEY_REUSED");
  const { assetId } = await builder.beginUpload({ ...key, partIds: [partId] });
  await rejectsWith(builder.deleteAsset({ assetId: partId }), "ASSET_IN_USE");
  const finished = await builder.finishUpload({
    assetId,
    digest: digestOf(content),
    sizeBytes: BigInt(content.length),
  });
  assert.deepEqual([finished.state, finished.parts[0]?.assetId], [AssetState.AVAILABLE, partId]);
});

test("bytes that a crash left in the store under an unfinished upload cannot be written to", async (t) => {
  const dir = temporary(t);
  await crash(dir, "finishing, between blob and row");
  await using assets = await openFixture({ dir });
  const builder = assets.as("builderd");
  const { assetId, receivedBytes } = await builder.beginUpload({
    uploadKey: "key",
    name: "crash",
    kind: AssetKind.ROOTFS,
  });
  await rejectsWith(builder.appendUpload(parts(assetId, receivedBytes, bytes("more"))), "ASSET_NOT_UPLOADING");
  assert.equal(readFileSync(assets.blobPath(digestOf(content)), "utf8"), "crashing content");
});

async function* parts(assetId: string, offset: bigint, chunk: Uint8Array) {
  yield await Promise.resolve({ part: { case: "header" as const, value: { assetId, offset } } });
  yield { part: { case: "chunk" as const, value: chunk } };
}
