import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import {
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { gib, mib, systemClock, type TenantId } from "@unkey/base";
import { Secret } from "@unkey/daemon";
import { BlobCache } from "../src/adapters/blob-cache.ts";
import { type OpenedBlobStore, openBlobStore } from "../src/adapters/open-blob-store.ts";
import { S3Client } from "../src/adapters/s3/s3-client.ts";
import { S3BlobStore } from "../src/adapters/s3-blob-store.ts";
import { openSqlCatalog } from "../src/adapters/sql-catalog.ts";
import type { RemoteConfig } from "../src/config.ts";
import type { Digest } from "../src/domain/asset.ts";
import type { BlobStore, Catalog } from "../src/ports.ts";
import { needsSwift, type S3Server, startSwift } from "./swift-server.ts";

const owner = "tenant_1" as TenantId;
const signal = AbortSignal.timeout(240_000);
const stack = new AsyncDisposableStack();
const blobKey = new Secret(randomBytes(32).toString("base64"));
let directory: string;
let catalog: Catalog;
let swift: S3Server | undefined;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "blob-stores-"));
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  catalog = stack.use(await openSqlCatalog(join(directory, "assets.db")));
  if (!needsSwift) swift = stack.use(await startSwift());
});
after(() => stack.disposeAsync());

const kinds: {
  readonly kind: string;
  readonly skip: false | string;
  readonly remote: () => RemoteConfig | undefined;
}[] = [
  { kind: "disk", skip: false, remote: () => undefined },
  { kind: "S3", skip: needsSwift, remote: () => remoteAt("plain/", undefined) },
  { kind: "S3, sealed", skip: needsSwift, remote: () => remoteAt("sealed/", blobKey) },
];

for (const [index, { kind, skip, remote }] of kinds.entries()) {
  describe(kind, { skip }, () => {
    let opened: OpenedBlobStore;
    let store: BlobStore;
    before(async () => {
      opened = await openAt(`store-${index}`, remote());
      ({ store } = opened);
    });
    after(() => opened[Symbol.asyncDispose]());

    // Around the sizes at which a blob is stored in one request, in parts, and sealed in one segment or more.
    for (const sizeBytes of [0, 1, mib, 8 * mib, 17 * mib + 3]) {
      test(`${sizeBytes} bytes: stored, measured, read from any offset, found as a file`, async () => {
        const { digest, bytes, path } = blob(sizeBytes);
        await store.adopt(digest, path, owner, signal);
        assert.equal(await store.size(digest, signal), sizeBytes);
        assert.deepEqual(await read(store, digest, 0), bytes);
        const middle = sizeBytes >> 1;
        assert.deepEqual(await read(store, digest, middle), bytes.subarray(middle));
        assert.deepEqual(readFileSync(await store.localPath(digest, signal)), bytes);
        assert.equal(await store.identity(digest, signal), await store.identity(digest, signal));
        await store.delete([digest], signal);
      });
    }

    test("what is not there", async () => {
      const { digest } = blob(10);
      assert.equal(await store.size(digest, signal), undefined);
      assert.equal(await store.identity(digest, signal), undefined);
      await assert.rejects(read(store, digest, 0), { reason: "ASSET_CORRUPT" });
      await assert.rejects(store.localPath(digest, signal), { reason: "ASSET_CORRUPT" });
      await store.delete([digest], signal);
    });

    test("stored again, another file takes its place", async () => {
      const { digest, path, bytes } = blob(100);
      const damaged = join(directory, "damaged");
      writeFileSync(damaged, randomBytes(100));
      await store.adopt(digest, damaged, owner, signal);
      const before = await store.identity(digest, signal);
      await store.adopt(digest, path, owner, signal);
      assert.notEqual(await store.identity(digest, signal), before);
      assert.deepEqual(await read(store, digest, 0), bytes);
      await store.delete([digest], signal);
    });

    test("lists every digest, ascending", async () => {
      const blobs = [blob(1), blob(2), blob(3)];
      for (const { digest, path } of blobs) await store.adopt(digest, path, owner, signal);
      const listed = (await Array.fromAsync(store.list(signal))).flat();
      assert.deepEqual(listed, blobs.map(({ digest }) => digest).toSorted());
      await store.delete(listed, signal);
      assert.deepEqual((await Array.fromAsync(store.list(signal))).flat(), []);
    });

    test("a file that a VM holds by a link outlives the blob", async () => {
      const { digest, path, bytes } = blob(50);
      await store.adopt(digest, path, owner, signal);
      const link = join(directory, `link-${index}`);
      linkSync(await store.localPath(digest, signal), link);
      await store.delete([digest], signal);
      assert.deepEqual(readFileSync(link), bytes);
    });
  });
}

test("S3: a blob is fetched once and then read from this host", { skip: needsSwift }, async () => {
  const { digest, path, bytes } = blob(3 * mib);
  {
    await using first = await openAt("host-1", remoteAt("shared/", undefined));
    await first.store.adopt(digest, path, owner, signal);
  }
  await using second = await openAt("host-2", remoteAt("shared/", undefined));
  const fetched = await Promise.all([second.store.localPath(digest, signal), second.store.localPath(digest, signal)]);
  assert.equal(fetched[0], fetched[1]);
  assert.deepEqual(readFileSync(fetched[0]), bytes);
  await using client = new S3Client(settings(), systemClock);
  await client.delete(`shared/${digest.replace(":", "/")}`, signal);
  assert.deepEqual(await read(second.store, digest, 0), bytes, "no bucket is asked");
  await using again = await openAt("host-2", remoteAt("shared/", undefined));
  assert.equal(await again.store.localPath(digest, signal), fetched[0], "also after a restart");
});

test("S3: bytes that were changed in the bucket reach nobody", { skip: needsSwift }, async () => {
  const { digest, path } = blob(1000);
  await using client = new S3Client(settings(), systemClock);
  for (const key of [undefined, blobKey]) {
    await using opened = await openAt("host-3", remoteAt("changed/", key));
    await opened.store.adopt(digest, path, owner, signal);
    await client.put(`changed/${digest.replace(":", "/")}`, randomBytes(1000 + (key === undefined ? 0 : 56)), signal);
    await using reader = await openAt(`host-4-${key === undefined ? "plain" : "sealed"}`, remoteAt("changed/", key));
    await assert.rejects(reader.store.localPath(digest, signal), { reason: "ASSET_CORRUPT" });
    assert.match(String(await reader.store.identity(digest, signal)), /^s3:/, "nothing came into the cache");
  }
});

test("S3, sealed: the bucket sees no byte of the text, and another operator's key opens nothing", {
  skip: needsSwift,
}, async () => {
  const { digest, path, bytes } = blob(2000);
  await using opened = await openAt("host-5", remoteAt("secret/", blobKey));
  await opened.store.adopt(digest, path, owner, signal);
  await using client = new S3Client(settings(), systemClock);
  const stored = await Array.fromAsync((await client.get(`secret/${digest.replace(":", "/")}`, 0, signal)) ?? []);
  assert.ok(!Buffer.concat(stored).includes(bytes.subarray(100, 120)));
  const other = new Secret(randomBytes(32).toString("base64"));
  await using foreign = await openAt("host-6", remoteAt("secret/", other));
  await assert.rejects(foreign.store.localPath(digest, signal), { reason: "BLOB_KEY_INVALID" });
});

test("the cache: the least recently used goes, what was just handed out stays", { skip: needsSwift }, async () => {
  let nowMs = 1_000_000;
  const cache = await BlobCache.open(join(directory, "small"), 250, { ...systemClock, nowMs: () => nowMs });
  const blobs = [blob(100), blob(100), blob(100)];
  for (const { digest, path } of blobs) await cache.add(digest, path);
  const [one, two, three] = blobs.map(({ digest }) => digest) as [Digest, Digest, Digest];
  assert.ok(await cache.path(one), "over the bound, yet somebody may hold its path");
  nowMs += 3_600_000;
  await cache.path(one);
  const four = blob(10);
  await cache.add(four.digest, four.path);
  assert.equal(await cache.path(two), undefined);
  assert.ok(await cache.path(three));
  assert.ok(await cache.path(one));
});

test("S3: a large upload that fails leaves no parts in the bucket", { skip: needsSwift }, async () => {
  const { digest, path } = blob(20 * mib);
  await using client = new S3Client(settings(), systemClock);
  const failing = Object.create(client) as S3Client;
  failing.putPart = (key, uploadId, number, bytes, each) =>
    number === 2 ? Promise.reject(new Error("cut")) : client.putPart(key, uploadId, number, bytes, each);
  for (const method of ["beginParts", "abortParts"] as const) failing[method] = client[method].bind(client) as never;
  const cache = await BlobCache.open(join(directory, "failing"), gib, systemClock);
  const store = new S3BlobStore({ client: failing, prefix: "failing/", cache, keys: undefined, maxBlobBytes: gib });
  await assert.rejects(store.adopt(digest, path, owner, signal), /cut/);
  assert.deepEqual(await client.listParts("failing/", signal), []);
  assert.equal(await client.head(`failing/${digest.replace(":", "/")}`, signal), undefined);
  assert.equal(await cache.path(digest), undefined);
});

test("S3: a bucket that sends without end does not fill the disk", async () => {
  const { digest } = blob(10);
  async function* endless(): AsyncGenerator<Uint8Array> {
    for (;;) yield Buffer.alloc(100_000);
  }
  const client = { get: async () => endless() } as unknown as S3Client;
  const cache = await BlobCache.open(join(directory, "endless"), gib, systemClock);
  const store = new S3BlobStore({ client, prefix: "", cache, keys: undefined, maxBlobBytes: mib });
  await assert.rejects(store.localPath(digest, signal), { reason: "ASSET_CORRUPT" });
  assert.equal(await cache.path(digest), undefined);
  assert.deepEqual(readdirSync(join(directory, "endless/arriving")), []);
});

test("S3: a bucket that cannot be used stops the start", { skip: needsSwift }, async () => {
  const remote = remoteAt("x/", undefined);
  await assert.rejects(openAt("host-7", { ...remote, s3: { ...remote.s3, bucket: "nobody" } }), {
    reason: "BLOB_STORE_REFUSED",
  });
});

test("disk: what a dead process left on its way is gone", async () => {
  await (await openAt("crashed", undefined))[Symbol.asyncDispose]();
  const leftover = join(directory, "crashed/adopting/leftover");
  assert.ok(existsSync(join(leftover, "..")), readdirSync(join(directory, "crashed")).join());
  writeFileSync(leftover, "half");
  await (await openAt("crashed", undefined))[Symbol.asyncDispose]();
  assert.ok(!existsSync(leftover));
});

async function openAt(name: string, remote: RemoteConfig | undefined): Promise<OpenedBlobStore> {
  const at = join(directory, name);
  mkdirSync(at, { recursive: true });
  return openBlobStore({ directory: at, remote, keys: catalog.keys, maxBlobBytes: gib, clock: systemClock, signal });
}

function settings() {
  assert.ok(swift);
  return swift.settings;
}

function remoteAt(prefix: string, key: Secret | undefined): RemoteConfig {
  return { s3: settings(), prefix, cacheMaxBytes: gib, blobKey: key };
}

function blob(sizeBytes: number): { digest: Digest; bytes: Buffer; path: string } {
  const bytes = randomBytes(sizeBytes);
  const hex = createHash("sha256").update(bytes).digest("hex");
  const path = join(directory, `file-${hex}`);
  writeFileSync(path, bytes);
  return { digest: `sha256:${hex}`, bytes, path };
}

async function read(store: BlobStore, digest: Digest, offset: number): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(store.read(digest, offset, signal)));
}
