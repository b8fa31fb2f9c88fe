import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { AssetKind } from "@unkey/api/asset";
import { BuildState, RootfsFormat } from "@unkey/api/builder";
import { mib, newId, type TenantId } from "@unkey/base";
import { deviceTableOf } from "@unkey/erofs";
import { type Builder, build, fromRegistry, startBuilder } from "./harness.ts";
import { startLayeredRegistry } from "./layered-registry.ts";

/*
 * Content of large layers is an asset of its own, which root filesystems share.
 */

const needsErofsUtils = existsSync("/usr/bin/fsck.erofs") ? false : "erofs-utils is not installed";

/** Bytes that no compression makes smaller. */
function noise(seed: number, length: number): Buffer {
  const words = new Uint32Array(length / 4);
  let state = seed;
  for (let at = 0; at < words.length; at++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    words[at] = state ^ (state >>> 15);
  }
  return Buffer.from(words.buffer);
}

const large = noise(1, 5 * mib);
const small = Buffer.from("small");

async function scene(context: TestContext) {
  const builder = await startBuilder(context);
  const registry = await startLayeredRegistry(context);
  const tenantId = newId("tenant");
  const make = async (name: string, layers: readonly Buffer[], as: TenantId = tenantId) => {
    const { reference } = await registry.add(name, layers);
    const result = await build(builder, as, fromRegistry(reference));
    assert.equal(result.state, BuildState.COMPLETED, JSON.stringify(result.failure));
    return { result, reference, ...rootfsOf(builder, result.rootfsAssetId) };
  };
  return { builder, registry, tenantId, make };
}

function rootfsOf({ assets }: Builder, assetId: string) {
  const rootfs =
    assets.stored.find((one) => one.assetId === assetId) ?? assert.fail("the root filesystem is not stored");
  const parts = rootfs.partIds.map(
    (id) => assets.stored.find((one) => one.assetId === id) ?? assert.fail("a part is not stored"),
  );
  return { rootfs, parts };
}

test("two images with the same large layer share its content", async (context) => {
  const { builder, make } = await scene(context);
  const one = await make("one", [large, small]);
  const two = await make("two", [large, Buffer.from("another")]);
  assert.notEqual(one.rootfs.assetId, two.rootfs.assetId);
  assert.deepEqual(one.rootfs.partIds, two.rootfs.partIds);
  assert.equal(one.parts.length, 1, "the small layer is copied");
  assert.equal(one.parts[0]?.header.kind, AssetKind.LAYER);
  assert.ok(one.parts[0]?.bytes.includes(large.subarray(0, 4096)));
  assert.ok(two.rootfs.bytes.includes("another") && !two.rootfs.bytes.includes(large.subarray(0, 4096)));
  assert.ok(one.rootfs.bytes.length < 64 * 1024);
  assert.equal(builder.assets.stored.filter(({ header }) => header.kind === AssetKind.LAYER).length, 1);
});

test("what is stored is an image that names its parts, and is sound with them", {
  skip: needsErofsUtils,
}, async (context) => {
  const { builder, make } = await scene(context);
  const { result, rootfs, parts } = await make("sound", [large, noise(2, 6 * mib), small]);
  assert.equal(parts.length, 2);
  const directory = builder.directory;
  const devices: string[] = [];
  for (const [index, part] of parts.entries()) {
    const path = join(directory, `part-${index}`);
    devices.push(`--device=${path}`);
    await writeFile(path, part.bytes);
  }
  await writeFile(join(directory, "image"), rootfs.bytes);
  execFileSync("fsck.erofs", [...devices, join(directory, "image")], { stdio: "pipe" });
  assert.deepEqual(
    deviceTableOf(rootfs.bytes).map(({ digest }) => `sha256:${digest}`),
    parts.map(({ header }) => header.digest),
  );
  const partBytes = parts.reduce((sum, { bytes }) => sum + bytes.length, 0);
  assert.equal(result.rootfsBytes, BigInt(rootfs.bytes.length + partBytes));
});

test("a tenant's root filesystem is made of that tenant's parts", async (context) => {
  const { make } = await scene(context);
  const mine = await make("mine", [large]);
  const theirs = await make("theirs", [large], newId("tenant"));
  assert.notDeepEqual(mine.rootfs.partIds, theirs.rootfs.partIds);
  assert.equal(mine.parts[0]?.header.digest, theirs.parts[0]?.header.digest);
});

test("a part that is gone is stored again, and the root filesystem made again", async (context) => {
  const { builder, tenantId, make } = await scene(context);
  const first = await make("image", [large, small]);
  const [part = assert.fail()] = first.parts;
  builder.assets.stored.splice(builder.assets.stored.indexOf(part), 1);
  const again = await build(builder, tenantId, fromRegistry(first.reference));
  assert.equal(again.state, BuildState.COMPLETED, JSON.stringify(again.failure));
  assert.equal(again.cacheHit, false);
  const { parts } = rootfsOf(builder, again.rootfsAssetId);
  assert.notEqual(parts[0]?.assetId, part.assetId);
  assert.equal(parts[0]?.header.digest, part.header.digest);
});

test("an image that has a large layer twice has one part", async (context) => {
  const { make } = await scene(context);
  const { parts } = await make("twice", [large, small, large]);
  assert.equal(parts.length, 1);
});

test("more large layers than drives: the largest are parts, the others are copied", async (context) => {
  const { make } = await scene(context);
  const layers = Array.from({ length: 10 }, (_, index) => noise(index + 10, 4 * mib + (20 - index) * 64 * 1024));
  const { rootfs, parts } = await make("many", layers);
  assert.equal(parts.length, 8);
  const sample = (bytes: Buffer): Buffer => bytes.subarray(8192, 8192 + 512);
  const copied = layers.filter((bytes) => rootfs.bytes.includes(sample(bytes)));
  assert.deepEqual(copied, layers.slice(8));
  for (const bytes of layers.slice(0, 8)) assert.ok(parts.some((part) => part.bytes.includes(sample(bytes))));
});

test("an ext4 root filesystem has no parts", {
  skip: existsSync("/usr/sbin/mke2fs") ? false : "e2fsprogs is not installed",
}, async (context) => {
  const { builder, registry, tenantId } = await scene(context);
  const { reference } = await registry.add("ext4", [large]);
  const result = await build(builder, tenantId, { ...fromRegistry(reference), format: RootfsFormat.EXT4 });
  assert.equal(result.state, BuildState.COMPLETED, JSON.stringify(result.failure));
  assert.equal(rootfsOf(builder, result.rootfsAssetId).parts.length, 0);
});
