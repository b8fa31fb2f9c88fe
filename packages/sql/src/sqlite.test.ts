import assert from "node:assert/strict";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { sqlContract } from "./sql.contract.ts";
import { isSqlError } from "./sql.ts";
import { openSqlite } from "./sqlite.ts";

async function withFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "unkey-sql-"));
  try {
    await body(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

sqlContract("SQLite", async () => {
  const folder = await mkdtemp(join(tmpdir(), "unkey-sql-"));
  return {
    open: (migrations) => openSqlite({ path: join(folder, "state", "test.db"), migrations }),
    remove: () => rm(folder, { recursive: true }),
  };
});

test("only the owner can read the folder, the file and its log", () =>
  withFolder(async (folder) => {
    const path = join(folder, "state", "test.db");
    await using sql = await openSqlite({ path, migrations: [{ id: 1, sql: "CREATE TABLE t (a INTEGER)" }] });
    const mode = async (at: string) => ((await stat(at)).mode & 0o777).toString(8);
    assert.equal(await mode(join(folder, "state")), "700");
    assert.deepEqual([await mode(path), await mode(`${path}-wal`), await mode(`${path}-shm`)], ["600", "600", "600"]);
    assert.deepEqual(await sql.query("PRAGMA journal_mode"), [{ journal_mode: "wal" }]);
    // NORMAL: SQLite syncs what a checkpoint needs; commits are synced by WriteAheadLog.
    assert.deepEqual(await sql.query("PRAGMA synchronous"), [{ synchronous: 1 }]);
    assert.deepEqual(await sql.query("PRAGMA foreign_keys"), [{ foreign_keys: 1 }]);
  }));

test("a file that is no database is refused as corrupt", () =>
  withFolder(async (folder) => {
    const path = join(folder, "test.db");
    await writeFile(path, "these are not the bytes of a database, however long one looks at them".repeat(40));
    await assert.rejects(openSqlite({ path, migrations: [] }), (error) => isSqlError(error, "corrupt"));
  }));

test("more statements than the cache holds still answer right", () =>
  withFolder(async () => {
    await using sql = await openSqlite({ path: ":memory:", migrations: [] });
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < 300; i++) assert.deepEqual(await sql.one(`SELECT ${i} AS i`), { i });
    }
  }));

test("the log is copied into the database beside its writers, and nothing is lost on the way", () =>
  withFolder(async (folder) => {
    const path = join(folder, "test.db");
    const migrations = [{ id: 1, sql: "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)" }];
    let rows = 0;
    {
      await using sql = await openSqlite({ path, migrations });
      for (let copied = 0; copied === 0; ) {
        const add = (i: number) => sql.run("INSERT INTO t VALUES (?, ?)", [rows + i, Buffer.alloc(20_000, i)]);
        await Promise.all(Array.from({ length: 100 }, (_, i) => add(i)));
        rows += 100;
        copied = (await sql.one<{ checkpointed: number }>("PRAGMA wal_checkpoint(NOOP)"))?.checkpointed ?? 0;
      }
      assert.deepEqual(await sql.one("SELECT COUNT(*) AS n FROM t"), { n: rows });
    }
    await using again = await openSqlite({ path, migrations });
    assert.deepEqual(await again.query("PRAGMA integrity_check"), [{ integrity_check: "ok" }]);
    assert.deepEqual(await again.one("SELECT COUNT(*) AS n FROM t"), { n: rows });
  }));
