import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { Checkpointer } from "./checkpointer.ts";

const programOf = (text: string) => new URL(`data:text/javascript,${encodeURIComponent(text)}`);

test("a checkpoint copies the log, and another thread does so when the first has rested", async () => {
  const folder = await mkdtemp(join(tmpdir(), "unkey-sql-"));
  try {
    const path = join(folder, "test.db");
    using db = new DatabaseSync(path);
    db.exec("PRAGMA journal_mode=WAL; CREATE TABLE t (a INTEGER)");
    const left = () => {
      const { log, checkpointed } = db.prepare("PRAGMA wal_checkpoint(NOOP)").get() as Record<string, number>;
      return Number(log) - Number(checkpointed);
    };
    for (let round = 0; round < 2; round++) {
      await using checkpointer = new Checkpointer(path);
      db.exec("INSERT INTO t VALUES (1)");
      assert.ok(left() > 0);
      await checkpointer.run();
      assert.equal(left(), 0);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});

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
    for (let attempt = 0; attempt < 2; attempt++) await assert.rejects(checkpointer.run());
  });
}
