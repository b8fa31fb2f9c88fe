import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { type ChdbServer, startChdb } from "./chdb-server.ts";
import { clickHouseContract } from "./clickhouse.contract.ts";
import { type ClickHouse, isClickHouseError } from "./clickhouse.ts";

const log = { info: () => undefined, warn: () => undefined };
const skip = hasEngine() ? false : "the optional package chdb is not installed for this platform";

function hasEngine(): boolean {
  try {
    createRequire(import.meta.url).resolve("chdb");
    return true;
  } catch {
    return false;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 600; i++) {
    if (await condition()) return;
    await delay(50);
  }
  assert.fail("it did not come true within 30 s");
}

if (!skip) {
  const folders: string[] = [];
  clickHouseContract("chDB in a child process", async () => {
    const folder = await mkdtemp(join(tmpdir(), "unkey-chdb-"));
    folders.push(folder);
    const server = await startChdb({ dataDir: join(folder, "data"), log });
    return withDispose(server, () => rm(folder, { recursive: true }));
  });
}

function withDispose(server: ClickHouse, then: () => Promise<void>): ClickHouse {
  return {
    insert: (table, rows, options) => server.insert(table, rows, options),
    query: (sql, params) => server.query(sql, params),
    exec: (sql, params) => server.exec(sql, params),
    ping: () => server.ping(),
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await then();
    },
  };
}

suite("the ClickHouse child", { skip }, () => {
  let folder: string;
  let server: ChdbServer;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "unkey-chdb-"));
    server = await startChdb({ dataDir: join(folder, "data"), log });
    await server.exec("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS fsync_after_insert = 1");
  });
  after(async () => {
    await server[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
    await rm(folder, { recursive: true });
  });

  test("tells its password to nobody", async () => {
    const pid = await server.pid();
    const visible = ["cmdline", "environ"].map((file) => readFileSync(`/proc/${pid}/${file}`, "utf8")).join("\0");
    assert.doesNotMatch(visible, /[A-Za-z0-9_-]{43}/);
  });

  test("is started again when it dies, with everything it acknowledged", async () => {
    for (let round = 0; round < 2; round++) {
      const pid = await server.pid();
      await server.insert("kept", [{ n: round }], { dedupToken: `${round}` });
      process.kill(pid, "SIGKILL");
      await until(async () => !isAlive(pid) && (await server.pid()) !== pid);
      const rows = await server.query("SELECT toUInt32(n) AS n FROM kept ORDER BY n");
      assert.deepEqual(
        rows,
        Array.from({ length: round + 1 }, (_, n) => ({ n })),
      );
    }
  });

  test("a second one on the same folder does not come up", async () => {
    await assert.rejects(startChdb({ dataDir: join(folder, "data"), log }), (error) =>
      isClickHouseError(error, "unavailable"),
    );
  });
});

test("the child dies with its parent", { skip }, async () => {
  const folder = await mkdtemp(join(tmpdir(), "unkey-chdb-"));
  const code = `
    const { startChdb } = await import(${JSON.stringify(new URL("./chdb-server.ts", import.meta.url).href)});
    const quiet = { info() {}, warn() {} };
    const server = await startChdb({ dataDir: process.argv[1], log: quiet });
    process.send(await server.pid());
    setInterval(() => undefined, 1000);`;
  const parent = spawn(process.execPath, ["--input-type=module", "-e", code, join(folder, "data")], {
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  const [pid] = (await once(parent, "message")) as [number];
  assert.ok(isAlive(pid));
  parent.kill("SIGKILL");
  await until(() => !isAlive(pid));
  await rm(folder, { recursive: true });
});
