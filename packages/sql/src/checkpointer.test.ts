import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { Checkpointer } from "./checkpointer.ts";

const programOf = (text: string) => new URL(`data:text/javascript,${encodeURIComponent(text)}`);

/** A database with a log of two commits, each of one page with a new value for the same row, so that a log cut short tells an older one. */
async function withDatabase(body: (path: string, db: DatabaseSync) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "unkey-sql-"));
  try {
    const path = join(folder, "test.db");
    using db = new DatabaseSync(path);
    db.exec("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0");
    db.exec("CREATE TABLE t (value INTEGER, filler BLOB)");
    db.exec("INSERT INTO t VALUES (1, zeroblob(3000)); PRAGMA wal_checkpoint(TRUNCATE)");
    setValue(db, 2);
    setValue(db, 3);
    await body(path, db);
  } finally {
    await rm(folder, { recursive: true });
  }
}

function setValue(db: DatabaseSync, value: number): void {
  db.exec(`UPDATE t SET value = ${value}, filler = randomblob(3000)`);
}

function logOf(db: DatabaseSync): { readonly log: number; readonly left: number } {
  const { log, checkpointed } = db.prepare("PRAGMA wal_checkpoint(NOOP)").get() as Record<string, number>;
  return { log: Number(log), left: Number(log) - Number(checkpointed) };
}

test("what was copied stays in the log until it is released, and then the next commit starts the log afresh", () =>
  withDatabase(async (path, db) => {
    await using checkpointer = new Checkpointer(path);
    const before = logOf(db);
    assert.equal(before.left, before.log);
    await checkpointer.copy();
    assert.deepEqual(logOf(db), { log: before.log, left: 0 });
    setValue(db, 4);
    assert.ok(logOf(db).log > before.log);
    await checkpointer.copy();
    await checkpointer.release();
    setValue(db, 5);
    assert.ok(logOf(db).log < before.log);
  }));

test("a restart leaves a log of one page, and another thread does so when the first has rested", () =>
  withDatabase(async (path, db) => {
    for (let round = 0; round < 2; round++) {
      await using checkpointer = new Checkpointer(path);
      setValue(db, 4 + round);
      await checkpointer.copy();
      setValue(db, 6 + round);
      await checkpointer.restart();
      assert.deepEqual(logOf(db), { log: 1, left: 1 });
      assert.deepEqual({ ...db.prepare("SELECT value FROM t").get() }, { value: 6 + round });
    }
  }));

test("a restart waits for another time when somebody else reads what is older", () =>
  withDatabase(async (path, db) => {
    await using checkpointer = new Checkpointer(path);
    using reader = new DatabaseSync(path);
    reader.exec("BEGIN; SELECT value FROM t");
    setValue(db, 4);
    const before = logOf(db).log;
    await checkpointer.restart();
    assert.ok(logOf(db).left > 0);
    assert.equal(logOf(db).log, before);
    reader.exec("COMMIT");
    await checkpointer.restart();
    assert.deepEqual(logOf(db), { log: 1, left: 1 });
  }));

const sectorBytes = 512;

test("a power failure between a restart's write and its sync loses nothing, whichever sectors had come to the disk", () =>
  withDatabase(async (path, db) => {
    await using checkpointer = new Checkpointer(path);
    await checkpointer.copy();
    const database = readFileSync(path);
    const old = readFileSync(`${path}-wal`);
    await checkpointer.restart();
    assert.deepEqual(logOf(db), { log: 1, left: 1 });
    const fresh = readFileSync(`${path}-wal`);
    const sectors = changedSectors(old, fresh);
    assert.ok(sectors.length >= 6 && sectors.length <= 9, `${sectors.length} sectors`);
    for (let choice = 0; choice < 2 ** sectors.length; choice++) {
      const written = sectors.filter((_, bit) => (choice & (1 << bit)) !== 0);
      assert.equal(await valueAfter(path, database, logWith(old, fresh, written)), 3, `sectors ${written.join(", ")}`);
    }
    // Why the commit has one page and no more: of a longer one, its end without its beginning tells what was long ago.
    const second = logWith(old, Buffer.alloc(old.length), sectorsOf(old).slice(9));
    assert.equal(await valueAfter(path, database, second), 2);
  }));

function sectorsOf(bytes: Buffer): number[] {
  return Array.from({ length: Math.ceil(bytes.length / sectorBytes) }, (_, sector) => sector);
}

function changedSectors(old: Buffer, fresh: Buffer): number[] {
  const at = (bytes: Buffer, sector: number) => bytes.subarray(sector * sectorBytes, (sector + 1) * sectorBytes);
  return sectorsOf(old).filter((sector) => !at(old, sector).equals(at(fresh, sector)));
}

/** `old` with some of its sectors as they are in `fresh`. */
function logWith(old: Buffer, fresh: Buffer, sectors: readonly number[]): Buffer {
  const log = Buffer.from(old);
  for (const sector of sectors) fresh.copy(log, sector * sectorBytes, sector * sectorBytes, (sector + 1) * sectorBytes);
  return log;
}

/** What a database answers that is opened with such a log; "damaged" when it is. */
async function valueAfter(path: string, database: Buffer, log: Buffer): Promise<unknown> {
  const copy = `${path}.copy`;
  await writeFile(copy, database);
  await writeFile(`${copy}-wal`, log);
  try {
    using db = new DatabaseSync(copy);
    if (db.prepare("PRAGMA integrity_check").get()?.["integrity_check"] !== "ok") return "damaged";
    return db.prepare("SELECT value FROM t").get()?.["value"];
  } finally {
    for (const suffix of ["", "-wal", "-shm"]) await rm(`${copy}${suffix}`, { force: true });
  }
}

const deaths = {
  "without a word": "require('node:worker_threads').parentPort.on('message', () => process.exit(0))",
  "before it is asked": "process.exit(0)",
  "with an error": "require('node:worker_threads').parentPort.on('message', () => { throw new Error('on purpose') })",
};
for (const [how, text] of Object.entries(deaths)) {
  test(`whoever waits is told when the thread ends ${how}, and so is the next one`, async () => {
    const program = programOf(
      `import { createRequire } from 'node:module'; const require = createRequire('/'); ${text}`,
    );
    await using checkpointer = new Checkpointer("unused", program);
    for (let attempt = 0; attempt < 2; attempt++) await assert.rejects(checkpointer.copy());
  });
}
