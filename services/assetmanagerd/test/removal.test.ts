import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { newId, ServiceError } from "@unkey/base";
import { openSqlite, type Sql } from "@unkey/sql";
import { migrations } from "../src/adapters/schema.ts";
import { openSqlCatalog } from "../src/adapters/sql-catalog.ts";
import { SqlLeases } from "../src/adapters/sql-leases.ts";
import type { IncomingFiles } from "../src/ports.ts";
import {
  bytes,
  contentOf,
  digestOf,
  type Fixture,
  graceMs,
  openFixture,
  prepare,
  rejectsWith,
  uploadOf,
} from "./fixture.ts";

const signal = new AbortController().signal;

const store = (assets: Fixture, text: string, name = text) =>
  assets.actingFor(assets.tenantId, "builderd").uploadAsset(uploadOf(bytes(text), { tenantId: assets.tenantId, name }));

async function sweep(assets: Fixture, assetId: string): Promise<void> {
  await assets.as("builderd").deleteAsset({ tenantId: assets.tenantId, assetId });
  for (let pass = 0; pass < 2; pass++) await assets.manager.collector.collect(signal);
  await rejectsWith(assets.as("metald").getAsset({ tenantId: assets.tenantId, assetId }), "ASSET_NOT_FOUND");
}

test("bytes go after the pass that swept their asset, and are counted when they have gone", async () => {
  await using assets = await openFixture();
  const { assetId } = await store(assets, "content");
  const path = assets.blobPath(digestOf(bytes("content")));
  await sweep(assets, assetId);
  assert.ok(existsSync(path));
  assert.doesNotMatch(assets.metrics.render(), /unkey_assets_freed_bytes_total 7/);
  await assets.manager.removal.pass(signal);
  assert.equal(existsSync(path), false);
  assert.match(assets.metrics.render(), /unkey_assets_freed_bytes_total 7\n/);
  assert.deepEqual(await assets.catalog.blobs.after("", 10), []);
  assert.equal(await assets.manager.removal.hurry(signal), false);
});

test("content that is stored again before its bytes went keeps them, by whatever way it comes", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  const path = assets.blobPath(digestOf(bytes("content")));
  await sweep(assets, (await store(assets, "content")).assetId);
  const { assetId } = await store(assets, "content");
  await assets.manager.removal.pass(signal);
  assert.ok(existsSync(path));
  assert.equal(await contentOf(assets.as("metald").downloadAsset({ tenantId, assetId })), "content");
  await sweep(assets, assetId);
  rmSync(path); // a crash came between bytes and row
  const again = await store(assets, "content");
  await assets.manager.removal.pass(signal);
  await prepare(assets, again.assetId);
});

test("bytes whose count and assets disagree stay, and somebody is told", async () => {
  await using assets = await openFixture();
  const { assetId } = await store(assets, "content");
  {
    using db = new DatabaseSync(join(assets.dir, "assets.db"));
    db.exec("UPDATE blobs SET refs = 0");
  }
  await assets.manager.removal.pass(signal);
  await assets.manager.collector.collect(signal);
  assert.match(assets.metrics.render(), /unkey_assets_refcount_disagreements 1\n/);
  assert.ok(assets.lines.some((line) => line.includes("the count of a blob's assets is wrong")));
  await prepare(assets, assetId);
});

test("an upload for which the disk is too full has what nobody needs removed at once", async () => {
  const removed: string[] = [];
  await using plain = await openFixture();
  const paths = ["one", "two"].map((text) => plain.blobPath(digestOf(bytes(text))));
  /** Full while more than `most` of the two are there. */
  const fullWith = (most: number): IncomingFiles =>
    new Proxy(plain.parts.incoming, {
      get: (real, key) => {
        if (key === "mustHaveRoom") {
          return async () => {
            const left = paths.filter((path) => existsSync(path));
            removed.push(`${left.length} left`);
            if (left.length > most) throw new ServiceError("ASSET_STORE_FULL", "full");
          };
        }
        const value: unknown = Reflect.get(real, key);
        return typeof value === "function" ? value.bind(real) : value;
      },
    });
  for (const text of ["one", "two"]) await sweep(plain, (await store(plain, text)).assetId);
  assert.ok(paths.every((path) => existsSync(path)));
  await using assets = await openFixture({ dir: plain.dir, incoming: fullWith(0) });
  await store(assets, "new");
  assert.deepEqual(removed, ["2 left", "0 left"]);
  await using full = await openFixture({ dir: plain.dir, incoming: fullWith(-1) });
  await rejectsWith(store(full, "more"), "ASSET_STORE_FULL");
});

test("a pass goes on behind what is held, however little it looks at in a slice", async () => {
  await using assets = await openFixture();
  const ids: string[] = [];
  for (let i = 0; i < 6; i++) {
    assets.advance(10);
    ids.push((await store(assets, `asset ${i}`)).assetId);
  }
  for (const held of [0, 1, 3]) await prepare(assets, ids[held] ?? "", { key: `vm_${held}`, leaseMs: 80_000_000 });
  const nowMs = assets.parts.clock.nowMs() + graceMs + 1;
  const { collection } = assets.catalog;
  const rules = { pass: await collection.beginPass(nowMs), nowMs, graceMs };
  const expected = [2, 4, 5].map((index) => ids[index]);
  for (const work of ["mark", "sweep"] as const) {
    const done: string[] = [];
    for (let after: Parameters<typeof collection.mark>[1]; ; ) {
      const slice = await collection[work]({ ...rules, pass: rules.pass + (work === "sweep" ? 1 : 0) }, after, 1);
      done.push(...slice.ids);
      after = slice.end;
      if (after === undefined) break;
    }
    assert.deepEqual(done, expected);
  }
});

test("a pass over many assets tells how many they are, and names the first 1000", async () => {
  await using assets = await openFixture();
  const { tenantId } = assets;
  {
    using db = new DatabaseSync(join(assets.dir, "assets.db"));
    const insert = db.prepare(
      "INSERT INTO assets VALUES (?, ?, 'a', 'rootfs', 1, 'deleting', NULL, 0, 0, '[]', '', 0, 0, 0, 0, NULL)",
    );
    db.exec("BEGIN");
    for (let i = 0; i < 1100; i++) insert.run(tenantId, newId("asset"));
    db.prepare("INSERT INTO tenant_usage VALUES (?, 0, 1100)").run(tenantId);
    db.exec("COMMIT");
  }
  for (const expected of [
    [1100, 0],
    [0, 1100],
  ]) {
    const said = await assets.as("operator").collectGarbage({ dryRun: true });
    const did = await assets.as("operator").collectGarbage({});
    for (const { markedCount, sweptCount, markedAssetIds, sweptAssetIds } of [said, did]) {
      assert.deepEqual([Number(markedCount), Number(sweptCount)], expected);
      assert.equal(markedAssetIds.length + sweptAssetIds.length, 1000);
    }
  }
  assert.equal((await assets.catalog.assets.usage(tenantId)).assetCount, 0);
});

test("a lease waits for the disk only when it takes assets back from collection", async () => {
  const dir = mkdtempSync(join(tmpdir(), "assets-durability-"));
  try {
    await using sql = await openSqlite({ path: join(dir, "assets.db"), migrations });
    let settled = 0;
    const counting: Sql = new Proxy(sql, {
      get: (real, key) => {
        if (key === "settle") settled += 1;
        const value: unknown = Reflect.get(real, key);
        return typeof value === "function" ? value.bind(real) : value;
      },
    });
    const leases = new SqlLeases(counting);
    const [tenantId, assetId, nowMs] = [newId("tenant"), newId("asset"), Date.now()];
    await sql.run("INSERT INTO blobs (blob_id, digest, size_bytes, refs) VALUES (1, 'sha256:0', 0, 1)");
    await sql.run(
      `INSERT INTO assets VALUES (?, ?, 'a', 'rootfs', 1, 'available', 1, 0, 0, '[]', '', 0, 0, 0, 0, NULL)`,
      [tenantId, assetId],
    );
    const acquire = (key: string) =>
      leases.acquire({ tenantId, key, assetIds: [assetId], nowMs, expiresAtMs: nowMs + 1000 });
    await acquire("vm_1");
    assert.equal(settled, 0);
    await sql.run("UPDATE assets SET marked_by = 1");
    await acquire("vm_2");
    assert.equal(settled, 1);
    await acquire("vm_3");
    assert.equal(settled, 1);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("a catalog of the form before assets named their content by number is brought over whole", async () => {
  const dir = mkdtempSync(join(tmpdir(), "assets-migration-"));
  try {
    const path = join(dir, "assets.db");
    const [tenantId, whole, part, lease] = [newId("tenant"), newId("asset"), newId("asset"), newId("lease")];
    const digest = (text: string) => digestOf(bytes(text));
    {
      await using old = await openSqlite({ path, migrations: migrations.slice(0, 4) });
      const asset = "INSERT INTO assets VALUES (?, ?, ?, ?, 1, 'available', ?, 5, 0, ?, '', 0, 1, 2, 2, NULL)";
      await old.run(asset, [tenantId, whole, "web", "rootfs", digest("whole"), '[["app","web"]]']);
      await old.run(asset, [tenantId, part, "layer", "layer", digest("layer"), "[]"]);
      await old.run("INSERT INTO asset_labels VALUES (?, ?, 'app', 'web')", [tenantId, whole]);
      await old.run("INSERT INTO asset_parts VALUES (?, ?, 0, ?)", [tenantId, whole, part]);
      for (const text of ["whole", "layer", "nobody's"]) {
        const refs = text === "nobody's" ? 0 : 1;
        await old.run("INSERT INTO blobs VALUES (?, 5, ?, 'known', 3)", [digest(text), refs]);
      }
      await old.run("INSERT INTO leases VALUES (?, ?, 'vm', 4000000000000)", [tenantId, lease]);
      await old.run("INSERT INTO lease_assets VALUES (?, ?, ?, 0)", [tenantId, lease, whole]);
    }
    await using catalog = await openSqlCatalog(path);
    const query = { viewer: tenantId, labels: { app: "web" }, digest: digest("whole"), limit: 10 };
    const [asset, ...others] = await catalog.assets.list(query, Date.now());
    assert.deepEqual(others, []);
    assert.deepEqual(
      [asset?.id, asset?.digest, asset?.labels, asset?.leaseCount, asset?.parts],
      [
        whole,
        digest("whole"),
        { app: "web" },
        1,
        [{ id: part, digest: digest("layer"), sizeBytes: 5, state: "available" }],
      ],
    );
    assert.deepEqual(await catalog.assets.list({ ...query, labels: { app: "other" } }, Date.now()), []);
    assert.deepEqual((await catalog.leases.list(tenantId, whole, Date.now()))[0]?.id, lease);
    assert.deepEqual(await catalog.blobs.find(digest("layer")), {
      digest: digest("layer"),
      sizeBytes: 5,
      refs: 1,
      identity: "known",
    });
    assert.deepEqual(await catalog.removal.unused(10), [{ digest: digest("nobody's"), sizeBytes: 5 }]);
    assert.deepEqual((await catalog.collection.recount(0, 10)).disagreeing, []);
    await rejectsWith(catalog.assets.giveUp(tenantId, part, Date.now()), "ASSET_IN_USE", /part of/);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
