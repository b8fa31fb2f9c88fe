import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { suite, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { CallOptions } from "@connectrpc/connect";
import { isServiceError } from "@unkey/base";
import { startChdb } from "@unkey/clickhouse";
import { type RunningDaemon, startDaemon } from "@unkey/daemon";
import { readConfig, startBillingAggregator } from "../src/index.ts";
import { noEngine, temporaryFolder } from "../src/testing/engine.ts";
import { batchesByMinute, testSeries, testWindows } from "../src/testing/simulated-host.ts";
import { publish, requestsOf, summary } from "./support/pipeline.ts";
import { TestPlatform } from "./support/platform.ts";

const minuteMs = 60_000;
const beginMs = Math.floor(Date.now() / minuteMs) * minuteMs - 10 * minuteMs;

function startInProcess(platform: TestPlatform, lines: string[] = []): Promise<RunningDaemon> {
  return startDaemon({
    name: "billing-aggregator",
    env: platform.env(),
    readConfig,
    start: startBillingAggregator,
    write: (line) => lines.push(line),
  });
}

suite("the daemon", { skip: noEngine }, () => {
  test("takes batches and answers for them over mutual TLS, tells its health, and ends its streams when it stops", async () => {
    await using folder = await temporaryFolder();
    await using platform = new TestPlatform(folder.path);
    const lines: string[] = [];
    await using daemon = await startInProcess(platform, lines);
    const address = daemon.addresses.get("rpc") ?? "";
    const series = testSeries();
    const { tenantId, vmId } = series;
    const windows = testWindows(series, { fromMs: beginMs, toMs: beginMs + 90_000 }, [
      { cpuTimeUs: 7n },
      { cpuTimeUs: 8n },
    ]);
    const endless = Promise.withResolvers<void>();
    const requests = (async function* () {
      yield* requestsOf(batchesByMinute(series.hostId, windows));
      await endless.promise; // as billaged, which keeps its stream for the next minute
    })();
    const stream = platform.client("billaged", address).publishBatches(requests)[Symbol.asyncIterator]();
    assert.equal((await stream.next()).done, false);
    assert.equal((await stream.next()).done, false);

    const gateway = platform.client("gatewayd", address);
    const acting = platform.actingFor(tenantId);
    const vm = await completeUsage(gateway, { tenantId, vmId, fromMs: BigInt(beginMs) }, acting);
    assert.equal(vm.cpuTimeUs, 15n);
    const proof = await Array.fromAsync(gateway.listUsageWindows({ tenantId, vmId, fromMs: BigInt(beginMs) }, acting));
    assert.equal(proof.length, 2);
    const refused = (reason: Parameters<typeof isServiceError>[1]) => (error: unknown) => isServiceError(error, reason);
    await assert.rejects(gateway.queryUsage({ tenantId }), refused("PRINCIPAL_REQUIRED"));
    await assert.rejects(gateway.queryUsage({ tenantId: testSeries().tenantId }, acting), refused("TENANT_MISMATCH"));
    await assert.rejects(publish(platform.client("metald", address), []), refused("CALLER_NOT_ALLOWED"));

    const health = await daemon.health.report();
    assert.deepEqual([health.status, Object.keys(health.dependencies)], ["ok", ["identity", "inbox", "usage-store"]]);
    assert.deepEqual(health.layers["clickhouse"], { active: true, detail: "chDB in a child process" });
    assert.match(daemon.metrics.render(), /unkey_billing_batches_total\{outcome="accepted"\} 2/);

    const ended = stream.next();
    const stopped = daemon.stop();
    assert.equal((await ended).done, true); // in order, not cut off
    endless.resolve();
    assert.equal(await stopped, true);
    assert.deepEqual(
      lines.filter((line) => line.includes('"level":"error"')),
      [],
    );
  });

  test("refuses to start on wrong settings, naming all of them", async () => {
    await using folder = await temporaryFolder();
    await using platform = new TestPlatform(folder.path);
    const env = {
      ...platform.env(),
      UNKEY_BILLING_AGGREGATOR_DATA_DIR: "relative",
      UNKEY_BILLING_AGGREGATOR_INBOX_RETENTION: "1s",
      UNKEY_BILLING_AGGREGATOR_INBOX_LIMIT: "1KiB",
      UNKEY_BILLING_AGGREGATOR_CLICKHOUSE_URL: "http://127.0.0.1:8123",
      UNKEY_BILLING_AGGREGATOR_TYPO: "1",
    };
    const start = startDaemon({ name: "billing-aggregator", env, readConfig, start: startBillingAggregator });
    await assert.rejects(start, (error: Error) =>
      ["DATA_DIR", "INBOX_RETENTION", "INBOX_LIMIT", "CLICKHOUSE_PASSWORD_FILE", "TYPO"].every((name) =>
        error.message.includes(name),
      ),
    );
  });

  test("waits for the engine of a predecessor that still holds the folder", async () => {
    await using folder = await temporaryFolder();
    await using platform = new TestPlatform(folder.path);
    const log = { info: () => undefined, warn: () => undefined };
    await using predecessor = await startChdb({ dataDir: join(folder.path, "data", "clickhouse"), log });
    const refused = Promise.withResolvers<void>();
    const starting = startDaemon({
      name: "billing-aggregator",
      env: platform.env(),
      readConfig,
      start: startBillingAggregator,
      write: (line) => line.includes("the engine did not start") && refused.resolve(),
    });
    await refused.promise;
    await predecessor[Symbol.asyncDispose]();
    await using daemon = await starting;
    assert.equal((await daemon.health.report()).ready, true);
  });

  test("killed with -9 at any moment, it neither loses nor doubles what it confirmed", async () => {
    await using folder = await temporaryFolder();
    await using platform = new TestPlatform(folder.path);
    const series = testSeries();
    const minutes = Array.from({ length: 6 }, (_, i) => ({
      cpuTimeUs: 10n ** BigInt(i),
      netOutBytes: 2n ** BigInt(i),
    }));
    const windows = testWindows(series, { fromMs: beginMs, toMs: beginMs + 6 * minuteMs }, minutes);
    const batches = batchesByMinute(series.hostId, windows);
    for (const [index, batch] of batches.entries()) {
      await using process = await DaemonProcess.start(platform);
      // Everything again from the last confirmed one on, as a sender does that has not seen the confirmation.
      const sent = batches.slice(Math.max(0, index - 1), index + 1);
      const settled = await publish(platform.client("billaged", process.address), sent);
      assert.equal(settled.at(-1)?.outcome, "ACCEPTED", batch.batchId);
      if (index > 0) assert.equal(settled[0]?.outcome, "DUPLICATE");
      await delay(index * 25); // into, or past, the projection
      process.kill();
    }
    await using last = await DaemonProcess.start(platform);
    const { tenantId } = series;
    const question = { tenantId, fromMs: BigInt(beginMs) };
    const vm = await completeUsage(platform.client("gatewayd", last.address), question, platform.actingFor(tenantId));
    assert.deepEqual([vm.cpuTimeUs, vm.net[1]], [111_111n, 63n]);
  });
});

/** A busy machine may take longer than a question waits. */
async function completeUsage(
  client: ReturnType<TestPlatform["client"]>,
  question: Parameters<typeof client.queryUsage>[0],
  options: CallOptions,
) {
  for (let i = 0; i < 20; i++) {
    const [vm] = summary(await client.queryUsage(question, options)).vms;
    if (vm?.complete === true) return vm;
    await delay(100);
  }
  return assert.fail("usage did not become complete");
}

/** The daemon as a process of its own. Disposal kills it. */
class DaemonProcess implements AsyncDisposable {
  readonly address: string;
  readonly #child: ReturnType<typeof spawn>;
  readonly #exited: Promise<unknown>;

  private constructor(child: ReturnType<typeof spawn>, exited: Promise<unknown>, address: string) {
    this.#child = child;
    this.#exited = exited;
    this.address = address;
  }

  static async start(platform: TestPlatform): Promise<DaemonProcess> {
    const main = fileURLToPath(new URL("../src/main.ts", import.meta.url));
    const env = { PATH: process.env["PATH"], ...platform.env() };
    const child = spawn(process.execPath, [main], { env, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    for (const pipe of [child.stdout, child.stderr]) pipe.on("data", (text: Buffer) => (output += text.toString()));
    const exited = once(child, "exit");
    const deadline = Date.now() + 60_000;
    while (Date.now() < deadline && child.exitCode === null) {
      const text = await readFile(platform.addressFile, "utf8").catch(() => "");
      // The file of a predecessor that was killed names another process.
      if (text.includes(`"pid":${child.pid},`)) {
        const { addresses } = JSON.parse(text) as { addresses: { rpc: string } };
        return new DaemonProcess(child, exited, addresses.rpc);
      }
      await delay(50);
    }
    child.kill("SIGKILL");
    throw new Error(`the daemon did not start: ${output}`);
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill();
    await this.#exited;
  }
}
