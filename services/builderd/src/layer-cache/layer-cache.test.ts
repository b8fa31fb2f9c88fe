import assert from "node:assert/strict";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { isServiceError, newId, systemClock } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { digestOf } from "@unkey/oci";
import { openSqlite } from "@unkey/sql";
import { type CachedLayer, LayerCache, type LayerUser } from "./layer-cache.ts";
import { migrations } from "./schema.ts";

const signal = new AbortController().signal;
const user: LayerUser = {
  tenantId: newId("tenant"),
  source: { registry: "registry.test", canRead: async () => true },
};

function layerOf(name: string): CachedLayer {
  const digest = digestOf(Buffer.from(name));
  return {
    descriptor: { digest, sizeBytes: 1, mediaType: "", annotations: {}, platform: undefined },
    diffId: digestOf(Buffer.from(`${name} unpacked`)),
  };
}

async function scene(context: TestContext, format = 1) {
  const root = await mkdtemp(join(tmpdir(), "layer-cache-"));
  context.after(() => rm(root, { recursive: true, force: true }));
  const directory = join(root, "layers");
  const open = (options: { readonly format?: number; readonly maxBytes?: number } = {}) =>
    LayerCache.open({
      directory,
      maxBytes: options.maxBytes ?? 1000,
      format: options.format ?? format,
      clock: systemClock,
      log: createLogger({ write: () => undefined }),
    });
  let made = 0;
  /** A directory as a worker leaves it. */
  const unpacked = async (content: string): Promise<string> => {
    const path = join(root, `made-${++made}`);
    await mkdir(path);
    for (const name of ["index", "content", "tails"]) await writeFile(join(path, name), content, { mode: 0o666 });
    return path;
  };
  const place = (): string => join(root, `place-${++made}`);
  const directories = async () => (await readdir(directory)).filter((name) => name.startsWith("layer-"));
  const sql = async (statement: string) => {
    await using db = await openSqlite({ path: join(directory, "layers.db"), migrations });
    await db.run(statement, []);
  };
  return { directory, open, unpacked, place, directories, sql };
}

test("what was put is linked, read-only, after a restart too", async (context) => {
  const { open, unpacked, place } = await scene(context);
  const layer = layerOf("a");
  {
    await using cache = await open();
    const into = place();
    await cache.put(layer, user, await unpacked("bytes"), into);
    assert.equal(await readFile(join(into, "content"), "utf8"), "bytes");
  }
  await using cache = await open();
  const into = place();
  assert.equal(await cache.take(layer, user, into, signal), true);
  assert.deepEqual((await readdir(into)).toSorted(), ["content", "index", "tails"]);
  assert.equal(await cache.take({ ...layer, diffId: layer.descriptor.digest }, user, place(), signal), false);
});

test("a directory that holds anything else is refused", async (context) => {
  const { open, unpacked, place, directories } = await scene(context);
  await using cache = await open();
  const extra = await unpacked("a");
  await writeFile(join(extra, "more"), "");
  await assert.rejects(cache.put(layerOf("a"), user, extra, place()), /has left \[.*"more".*\] where/);
  const linked = await unpacked("a");
  await rm(join(linked, "content"));
  await symlink("/etc/passwd", join(linked, "content"));
  await assert.rejects(cache.put(layerOf("a"), user, linked, place()), /has left content as something else/);
  const half = await unpacked("a");
  await rm(join(half, "index"));
  await assert.rejects(cache.put(layerOf("a"), user, half, place()), (error) =>
    isServiceError(error, "BUILD_WORKER_MISBEHAVED"),
  );
  assert.deepEqual(await directories(), []);
});

test("what a crash left goes at the next start: directories without rows, rows without directories, torn files", async (context) => {
  const { directory, open, unpacked, place, directories } = await scene(context);
  {
    await using cache = await open();
    for (const name of ["whole", "gone", "torn"]) await cache.put(layerOf(name), user, await unpacked(name), place());
  }
  for (const name of await directories()) {
    const content = join(directory, name, "content");
    const text = await readFile(content, "utf8");
    if (text === "gone") await rm(join(directory, name), { recursive: true });
    if (text !== "torn") continue;
    await chmod(content, 0o600);
    await writeFile(content, "to");
  }
  await mkdir(join(directory, "layer-without-a-row"));
  await using cache = await open();
  assert.equal((await directories()).length, 1);
  assert.equal(await cache.take(layerOf("whole"), user, place(), signal), true);
  assert.equal(await cache.take(layerOf("gone"), user, place(), signal), false);
  assert.equal(await cache.take(layerOf("torn"), user, place(), signal), false);
});

test("after a reboot only what was settled is believed; another format is not", async (context) => {
  const { open, unpacked, place, directories, sql } = await scene(context);
  {
    await using cache = await open();
    await cache.put(layerOf("settled"), user, await unpacked("a"), place());
    await cache.settle(signal);
    await cache.put(layerOf("fresh"), user, await unpacked("b"), place());
  }
  await sql("UPDATE fact SET value = 'another boot' WHERE name = 'boot'");
  {
    await using cache = await open();
    assert.equal(await cache.take(layerOf("settled"), user, place(), signal), true);
    assert.equal(await cache.take(layerOf("fresh"), user, place(), signal), false);
  }
  await using cache = await open({ format: 2 });
  assert.equal(await cache.take(layerOf("settled"), user, place(), signal), false);
  assert.deepEqual(await directories(), []);
});

test("a smaller bound holds from the next start on", async (context) => {
  const { open, unpacked, place, directories } = await scene(context);
  {
    await using cache = await open();
    for (const name of ["a", "b", "c"]) await cache.put(layerOf(name), user, await unpacked("x".repeat(100)), place());
  }
  await using _ = await open({ maxBytes: 650 });
  assert.equal((await directories()).length, 2);
});

test("whose is it: a proof, the registry of the bytes, or an own upload; doubt is a no", async (context) => {
  const { open, unpacked, place } = await scene(context);
  await using cache = await open();
  const layer = layerOf("private");
  await cache.put(layer, user, await unpacked("a"), place());
  const as = (registry: string | undefined, canRead: () => Promise<boolean>, tenantId = newId("tenant")) =>
    cache.take(layer, { tenantId, source: { registry, canRead } }, place(), signal);
  const yes = async () => true;
  const no = async () => false;
  const broken = async () => {
    throw new Error("the registry is away");
  };
  assert.equal(await as("registry.test", no), false);
  assert.equal(await as("registry.test", broken), false);
  assert.equal(await as("elsewhere.test", yes), false, "it never gave us these bytes");
  assert.equal(await as(undefined, no), false, "an upload without the bytes");
  const friend = newId("tenant");
  assert.equal(await as("registry.test", yes, friend), true);
  assert.equal(await as("registry.test", broken, friend), true, "it was proved once");
  assert.equal(await as("elsewhere.test", broken, user.tenantId), true, "they had the bytes");
  assert.equal(await as("elsewhere.test", yes), false, "a proof makes no other registry believable");
  assert.equal(await as(undefined, yes), true);
});

test("the digest of a layer's content is kept as long as the layer is", async (context) => {
  const { open, unpacked, place } = await scene(context);
  const layer = layerOf("a");
  const key = { digest: layer.descriptor.digest, diffId: layer.diffId };
  {
    await using cache = await open();
    await cache.noteContentDigest(key, "sha256:lost"); // of a layer that is not here
    await cache.put(layer, user, await unpacked("bytes"), place());
    assert.equal(await cache.contentDigest(key), undefined);
    await cache.noteContentDigest(key, "sha256:aa");
  }
  await using cache = await open();
  assert.equal(await cache.contentDigest(key), "sha256:aa");
  await cache.forget([layer]);
  assert.equal(await cache.contentDigest(key), undefined);
});
