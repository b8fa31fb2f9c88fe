import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { lockDataDir, takeFileLock } from "./file-lock.ts";

async function temporary(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "file-lock-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

test("one holder at a time, in one process and across processes; a killed one holds nothing", async (context) => {
  const path = join(await temporary(context), "lock");
  const script = `import { takeFileLock } from ${JSON.stringify(join(import.meta.dirname, "file-lock.ts"))};
    const lock = takeFileLock(${JSON.stringify(path)});
    console.log(lock === undefined ? "taken" : "mine");`;
  const other = ["--input-type=module", "-e", script];
  {
    using lock = takeFileLock(path);
    assert.ok(lock);
    assert.equal(takeFileLock(path), undefined);
    assert.equal(execFileSync(process.execPath, other, { encoding: "utf8" }), "taken\n");
  }
  const child = spawn(process.execPath, [...other.slice(0, 2), `${script}; setInterval(() => lock, 1e6);`]);
  context.after(() => child.kill("SIGKILL"));
  const [said] = (await once(child.stdout, "data")) as [Buffer];
  assert.equal(String(said), "mine\n");
  assert.equal(takeFileLock(path), undefined);
  child.kill("SIGKILL");
  await once(child, "exit");
  using lock = takeFileLock(path);
  assert.ok(lock);
});

test("a data directory has one daemon; the refusal says what to do", async (context) => {
  const dataDir = join(await temporary(context), "data");
  const first = lockDataDir("billing-aggregator", dataDir);
  assert.equal((await stat(dataDir)).mode & 0o777, 0o700);
  assert.throws(() => lockDataDir("billing-aggregator", dataDir), {
    message: `another daemon uses ${dataDir}: stop it, or set UNKEY_BILLING_AGGREGATOR_DATA_DIR to a directory of this one's own`,
  });
  first[Symbol.dispose]();
  lockDataDir("billing-aggregator", dataDir)[Symbol.dispose]();
});
