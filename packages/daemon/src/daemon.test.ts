import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { type DaemonContext, startDaemon } from "./daemon.ts";
import type { HealthReport } from "./health.ts";
import { ConfigError } from "./settings.ts";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "daemon-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

function options(
  env: Record<string, string>,
  start: (context: DaemonContext) => AsyncDisposable | Promise<AsyncDisposable>,
) {
  return {
    name: "assetmanagerd" as const,
    env: { UNKEY_ASSETMANAGERD_HEALTH_PORT: "0", ...env },
    readConfig: () => ({}),
    start: async (_config: object, context: DaemonContext) => start(context),
    write: () => undefined,
  };
}

const nothing: AsyncDisposable = { [Symbol.asyncDispose]: () => Promise.resolve() };

async function get(address: string | undefined, path: string) {
  const response = await fetch(`http://${address}${path}`);
  return { status: response.status, text: await response.text() };
}

test("health tells state, dependencies and layers; ready follows the required ones; metrics render", async () => {
  let broken = false;
  await using daemon = await startDaemon(
    options({}, ({ health, metrics, announce }) => {
      health.layer("jail", { active: false, detail: "not running as root" });
      health.dependency("optional", () => Promise.reject(new Error("away")), { required: false });
      health.dependency("database", () => {
        if (broken) throw new Error("disk full");
      });
      metrics.counter("things_total", "Things.").inc();
      announce("rpc", "::1", 8083);
      return nothing;
    }),
  );
  const address = daemon.addresses.get("health");
  assert.match(address ?? "", /^127\.0\.0\.1:\d+$/);
  const report = JSON.parse((await get(address, "/health")).text) as HealthReport;
  assert.equal(report.status, "degraded");
  assert.equal(report.ready, true);
  assert.deepEqual(report.layers, { jail: { active: false, detail: "not running as root" } });
  assert.equal(report.dependencies["optional"]?.error, "away");
  assert.equal(report.dependencies["database"]?.ok, true);
  assert.equal(report.addresses["rpc"], "[::1]:8083");
  assert.equal((await get(address, "/ready")).status, 200);
  const metrics = (await get(address, "/metrics")).text;
  assert.match(metrics, /things_total 1/);
  assert.match(metrics, /process_resident_memory_bytes \d+/);
  assert.match(metrics, /nodejs_eventloop_delay_seconds\{quantile="0.99"\}/);
  assert.equal((await get(address, "/other")).status, 404);
  const post = await fetch(`http://${address}/health`, { method: "POST" });
  assert.equal(post.status, 405);
  broken = true;
  assert.equal((await daemon.health.report()).dependencies["database"]?.ok, true, "a report is reused for a second");
});

test("the daemon is starting until start returns, and its addresses are in the file from then until the stop", async () => {
  const file = join(dir, "address.json");
  const seen: string[] = [];
  const daemon = await startDaemon(
    options({ UNKEY_ASSETMANAGERD_ADDRESS_FILE: file }, async ({ health, announce }) => {
      seen.push((await health.report()).status);
      assert.equal(existsSync(file), false);
      announce("rpc", "127.0.0.1", 4321);
      return nothing;
    }),
  );
  seen.push((await daemon.health.report()).status);
  assert.deepEqual(seen, ["starting", "ok"]);
  const content = JSON.parse(readFileSync(file, "utf8")) as { pid: number; addresses: Record<string, string> };
  assert.equal(content.pid, process.pid);
  assert.equal(content.addresses["rpc"], "127.0.0.1:4321");
  assert.equal(content.addresses["health"], daemon.addresses.get("health"));
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.equal(await daemon.stop(), true);
  assert.equal(existsSync(file), false);
});

test("a stop refuses, drains, and aborts at the grace deadline", async () => {
  const events: string[] = [];
  const daemon = await startDaemon(
    options({ UNKEY_ASSETMANAGERD_GRACE: "20ms" }, (context) => {
      context.stopping.addEventListener("abort", () => events.push(`refuse while ${context.health.state}`));
      return {
        [Symbol.asyncDispose]: async () => {
          events.push("drain");
          await new Promise((resolve) => context.abort.addEventListener("abort", resolve));
          events.push("abort");
        },
      };
    }),
  );
  const stops = [daemon.stop(), daemon.stop()];
  assert.deepEqual(await Promise.all(stops), [true, true]);
  assert.deepEqual(events, ["refuse while stopping", "drain", "abort"]);
});

test("a second demand skips what is left of draining", async () => {
  const daemon = await startDaemon(
    options({ UNKEY_ASSETMANAGERD_GRACE: "10m" }, ({ abort }) => ({
      [Symbol.asyncDispose]: () => new Promise((resolve) => abort.addEventListener("abort", () => resolve())),
    })),
  );
  const stopped = daemon.stop();
  daemon.abort();
  assert.equal(await stopped, true);
});

test("a start that fails gives back what it had, and wrong settings start nothing", async () => {
  let address: string | undefined;
  await assert.rejects(
    startDaemon(
      options({}, async ({ health }) => {
        address = (await health.report()).addresses["health"];
        throw new Error("no database");
      }),
    ),
    /no database/,
  );
  await assert.rejects(fetch(`http://${address}/health`));
  await assert.rejects(
    startDaemon(
      options({ UNKEY_ASSETMANAGERD_GRACE: "long", UNKEY_ASSETMANAGERD_X: "1" }, () => assert.fail("started")),
    ),
    (error: unknown) => error instanceof ConfigError && error.mistakes.length === 2,
  );
});
