import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { BuildState, RootfsFormat } from "@unkey/api/builder";
import { newId } from "@unkey/base";
import { build, fromRegistry, startBuilder, temporary } from "./harness.ts";
import { startLayeredRegistry } from "./layered-registry.ts";

/*
 * Layers that builds share: within a tenant, and across tenants only where the other one may read them.
 */

const needsMke2fs = existsSync("/usr/sbin/mke2fs") || existsSync("/sbin/mke2fs") ? false : "e2fsprogs is not installed";
const base = Buffer.alloc(300_000, "base");
const login = (username: string) => ({ username, password: "secret" });
const isUser = (header: string, username: string): boolean =>
  header === `Basic ${Buffer.from(`${username}:secret`).toString("base64")}`;

test("a layer that an earlier image had is not fetched again", async (context) => {
  const builder = await startBuilder(context);
  const registry = await startLayeredRegistry(context);
  const first = await registry.add("one", [base, Buffer.from("one")]);
  const second = await registry.add("two", [base, Buffer.from("two")]);
  const tenantId = newId("tenant");
  await build(builder, tenantId, fromRegistry(first.reference));
  const result = await build(builder, tenantId, fromRegistry(second.reference));
  assert.equal(result.state, BuildState.COMPLETED, JSON.stringify(result.failure));
  assert.equal(registry.reads.get(first.digests[0] ?? ""), 1);
  assert.equal(result.cacheHit, false);
  assert.equal(builder.assets.rootfs.length, 2);
  const log = [];
  for await (const { text } of builder.as(tenantId).streamBuildLogs({ tenantId, buildId: result.buildId }))
    log.push(text);
  assert.match(log.join("\n"), /from the layer cache: sha256:[0-9a-f]{12}\nfetching 1 of 2 layers/);
});

test("an image that has a layer twice fetches it once", async (context) => {
  const builder = await startBuilder(context);
  const registry = await startLayeredRegistry(context);
  const { reference, digests } = await registry.add("twice", [base, Buffer.from("x")]);
  const again = await registry.add("again", [base, Buffer.from("x"), base]);
  const tenantId = newId("tenant");
  assert.equal((await build(builder, tenantId, fromRegistry(again.reference))).state, BuildState.COMPLETED);
  assert.equal((await build(builder, tenantId, fromRegistry(reference))).state, BuildState.COMPLETED);
  assert.equal(registry.reads.get(digests[0] ?? ""), 1);
});

test("another tenant has a cached layer only with a login that may read it now", async (context) => {
  const builder = await startBuilder(context);
  const registry = await startLayeredRegistry(context);
  const { reference, digests } = await registry.add("private", [base]);
  const [digest = ""] = digests;
  registry.rules.mayRead = (header) => isUser(header, "owner") || isUser(header, "friend");
  const owner = newId("tenant");
  assert.equal(
    (await build(builder, owner, { ...fromRegistry(reference), credentials: login("owner") })).state,
    BuildState.COMPLETED,
  );
  const friend = await build(builder, newId("tenant"), { ...fromRegistry(reference), credentials: login("friend") });
  assert.equal(friend.state, BuildState.COMPLETED, JSON.stringify(friend.failure));
  assert.equal(registry.reads.get(digest), 1, "the friend's login was asked about, and the layer was not sent");

  // One who may see the image's manifest but not its layer.
  registry.rules.mayRead = (header, wanted) => isUser(header, "stranger") && wanted !== digest;
  const stranger = await build(builder, newId("tenant"), {
    ...fromRegistry(reference),
    credentials: login("stranger"),
  });
  assert.equal(stranger.state, BuildState.FAILED, "a layer that is here is still not this tenant's");
});

test("a registry that claims to have a layer does not give one that came from elsewhere", async (context) => {
  const builder = await startBuilder(context);
  const honest = await startLayeredRegistry(context);
  const { reference, digests } = await honest.add("secret", [base]);
  assert.equal((await build(builder, newId("tenant"), fromRegistry(reference))).state, BuildState.COMPLETED);

  // The thief's registry has the manifest, and other bytes under the layer's name.
  const thief = await startLayeredRegistry(context);
  await thief.add("secret", [base]);
  thief.blobs.set(digests[0] ?? "", { bytes: Buffer.alloc(base.length), mediaType: "application/octet-stream" });
  const stolen = await build(builder, newId("tenant"), fromRegistry(`${thief.host}/secret:v1`));
  assert.equal(stolen.state, BuildState.FAILED);
  assert.equal(stolen.failure?.reason, "IMAGE_DIGEST_MISMATCH");
});

test("what is over the bound goes, the least recently used first; builds do not mind", async (context) => {
  const builder = await startBuilder(context, { layerCacheBytes: 700_000 });
  const registry = await startLayeredRegistry(context);
  const images = [];
  for (const name of ["a", "b", "c"]) images.push(await registry.add(name, [Buffer.alloc(300_000, name)]));
  const tenantId = newId("tenant");
  for (const { reference } of images) {
    assert.equal((await build(builder, tenantId, fromRegistry(reference))).state, BuildState.COMPLETED);
  }
  const kept = async () =>
    (await readdir(join(builder.directory, "layers"))).filter((name) => name.startsWith("layer-"));
  assert.equal((await kept()).length, 2);
  builder.assets.stored.length = 0; // so that each is made again
  for (const [index, { reference, digests }] of images.toReversed().entries()) {
    assert.equal((await build(builder, tenantId, fromRegistry(reference))).state, BuildState.COMPLETED);
    assert.equal(registry.reads.get(digests[0] ?? ""), index === 2 ? 2 : 1, "only the oldest was fetched again");
  }
  const large = await registry.add("large", [Buffer.alloc(900_000, "d")]);
  assert.equal((await build(builder, tenantId, fromRegistry(large.reference))).state, BuildState.COMPLETED);
  assert.equal((await kept()).length, 2, "one that is larger than all of it is not kept");
});

test("ext4 has the tree of EROFS, and says what it is", { skip: needsMke2fs }, async (context) => {
  const builder = await startBuilder(context);
  const registry = await startLayeredRegistry(context);
  const { reference, digests } = await registry.add("ext4", [base]);
  const tenantId = newId("tenant");
  const result = await build(builder, tenantId, { ...fromRegistry(reference), format: RootfsFormat.EXT4 });
  assert.equal(result.state, BuildState.COMPLETED, JSON.stringify(result.failure));
  const [asset] = builder.assets.rootfs;
  assert.equal(asset?.header.labels["rootfs.format"], "ext4");
  const image = join(await temporary(context), "rootfs");
  await writeFile(image, asset?.bytes ?? "");
  execFileSync("e2fsck", ["-fn", image], { stdio: "pipe" });
  const other = await build(builder, tenantId, fromRegistry(reference));
  assert.equal(other.cacheHit, false, "another format is another root filesystem");
  assert.equal(registry.reads.get(digests[0] ?? ""), 1, "from the same layers");
});
