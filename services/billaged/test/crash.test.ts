import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { zstdDecompressSync } from "node:zlib";
import { fromBinary } from "@bufbuild/protobuf";
import { BatchOutcome, BillingService } from "@unkey/api/billing";
import { MeteringService, type SampleFrame, type WindowBatch, WindowBatchSchema } from "@unkey/api/metering";
import { isServiceError } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { listenRpc, openRpcChannel } from "@unkey/rpc";
import { addUp, noValues, testFrame, testSample, testSeries, windowsOf } from "../src/domain/testing.ts";

const trustDomain = "unkey.test";
const main = join(import.meta.dirname, "../src/main.ts");
const log = createLogger({ write: () => undefined });

/** The other end of the pipeline: keeps every batch, and now and then takes one without saying so. */
async function startReceiver(identity: IdentitySource) {
  const received = new Map<string, string>();
  const batches: WindowBatch[] = [];
  let count = 0;
  const server = await listenRpc({
    identity,
    host: "127.0.0.1",
    port: 0,
    log,
    metrics: new Metrics(),
    routes: (router) =>
      router.service(BillingService, {
        async *publishBatches(requests) {
          for await (const { batchId, batchZstd, batchSha256, batchBytes } of requests) {
            const bytes = zstdDecompressSync(batchZstd);
            assert.deepEqual(createHash("sha256").update(bytes).digest(), Buffer.from(batchSha256));
            assert.equal(bytes.length, batchBytes);
            const known = received.get(batchId);
            if (known === undefined) {
              received.set(batchId, bytes.toString("hex"));
              batches.push(fromBinary(WindowBatchSchema, bytes));
            } else assert.equal(bytes.toString("hex"), known, "a batch changed its bytes");
            count += 1;
            if (count % 7 === 0) throw new Error("taken, but the answer is lost");
            yield { batchId, outcome: known === undefined ? BatchOutcome.ACCEPTED : BatchOutcome.DUPLICATE };
          }
        },
      }),
  });
  return { server, batches };
}

test("killed at random moments it loses and doubles nothing", { timeout: 120_000 }, async () => {
  const folder = await mkdtemp(join(tmpdir(), "unkey-billaged-"));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const authority = Authority.open(join(folder, "ca"), { commonName: "Test" });
  const identityOf = (service: string) => {
    const path = join(folder, `identity-${service}`);
    ensureIdentity(authority, path, { id: { trustDomain, service } });
    return path;
  };
  const open = (service: string) =>
    stack.adopt(IdentitySource.open(identityOf(service)), (source) => source[Symbol.dispose]());
  const { server, batches } = await startReceiver(open("billing-aggregator"));
  stack.use(server);

  const addressFile = join(folder, "address.json");
  const start = async (): Promise<ChildProcess> => {
    await rm(addressFile, { force: true });
    const child = spawn(process.execPath, [main], {
      stdio: "ignore",
      env: {
        UNKEY_BILLAGED_DATA_DIR: join(folder, "data"),
        UNKEY_BILLAGED_IDENTITY_DIR: identityOf("billaged"),
        UNKEY_BILLAGED_TRUST_DOMAIN: trustDomain,
        UNKEY_BILLAGED_LISTEN_PORT: "0",
        UNKEY_BILLAGED_HEALTH_PORT: "0",
        UNKEY_BILLAGED_ADDRESS_FILE: addressFile,
        UNKEY_BILLAGED_SEGMENT_SIZE: "65536",
        UNKEY_BILLAGED_AGGREGATOR_ADDRESS: `127.0.0.1:${server.port}`,
      },
    });
    for (let i = 0; (await readFile(addressFile, "utf8").catch(() => "")) === ""; i++) {
      assert.ok(i < 600 && child.exitCode === null, "billaged did not start");
      await delay(50);
    }
    return child;
  };
  const kill = async (child: ChildProcess) => {
    child.kill("SIGKILL");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  };

  let child = await start();
  stack.defer(() => kill(child));
  const channel = stack.use(
    openRpcChannel({ peer: "billaged", address: { file: addressFile }, identity: open("metald") }),
  );
  const client = channel.client(MeteringService);

  // Twelve minutes of three VMs, a tick a second, told as fast as it goes.
  const vmIds = ["vm_a", "vm_b", "vm_c"];
  const begin = Math.floor(Date.now() / 60_000) * 60_000 - 20 * 60_000 + 7_300;
  const ticks = 720;
  const baseline = testSample(0, begin, noValues);
  const lives = vmIds.map((vmId) => ({ tenantId: "tenant_1", series: testSeries(vmId), baseline }));
  const insist = async (call: () => Promise<unknown>) => {
    for (let attempt = 0; ; attempt++) {
      try {
        return await call();
      } catch (error) {
        if (attempt > 200 || !isServiceError(error)) throw error;
        await delay(50);
      }
    }
  };
  for (const life of lives) await insist(() => client.notifyVmStarted(life));

  let unconfirmed: SampleFrame[] = Array.from({ length: ticks }, (_, i) => {
    const seq = i + 1;
    const values = { ...noValues, cpu: seq * 11, netOut: seq * 13 };
    return testFrame(
      seq,
      begin + seq * 1_000,
      vmIds.map((vmId) => ({ vmId, seq, values })),
    );
  });
  const report = async () => {
    const frames = async function* () {
      for (const frame of unconfirmed) {
        await delay(2);
        yield frame;
      }
    };
    for await (const ack of client.streamSamples(frames())) {
      unconfirmed = unconfirmed.filter((frame) => frame.frameSeq > ack.frameSeq);
    }
  };
  for (let kills = 0; unconfirmed.length > 0; ) {
    const reporting = report().catch((error: unknown) => {
      if (!isServiceError(error)) throw error;
    });
    if (kills < 6) {
      await Promise.race([reporting, delay(20 + Math.random() * 400)]);
      await kill(child);
      kills += 1;
      await reporting;
      child = await start();
    } else await reporting;
  }
  const final = testSample(0, begin + ticks * 1_000 + 450, { ...noValues, cpu: 100_001, netOut: 100_003 });
  for (const life of lives) await insist(() => client.notifyVmStopped({ ...life, final }));
  await kill(child); // confirmed is confirmed
  child = await start();

  const isComplete = (vmId: string) => windowsOf(batches, vmId).some((window) => window.final);
  for (let i = 0; !vmIds.every(isComplete); i++) {
    assert.ok(i < 600, "the last windows did not arrive");
    await delay(50);
  }
  for (const vmId of vmIds) {
    const windows = windowsOf(
      batches.toSorted((a, b) => Number(a.batchSeq - b.batchSeq)),
      vmId,
    );
    const totals = addUp(windows);
    assert.deepEqual([totals.cpu, totals.netOut, totals.seen], [100_001n, 100_003n, ticks]);
  }
});
