import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { toBinary } from "@bufbuild/protobuf";
import { UsageWindowSchema } from "@unkey/api/metering";
import { type ErrorReason, isServiceError, newId } from "@unkey/base";
import type { ClickHouse } from "@unkey/clickhouse";
import { defaultPriceBook } from "../src/domain/price-book.ts";
import { noEngine, temporaryEngine } from "../src/testing/engine.ts";
import {
  batchesByMinute,
  envelopeOf,
  gibBytes,
  revised,
  testBatch,
  testSeries,
  testWindows,
} from "../src/testing/simulated-host.ts";
import { type Pipeline, publish, startPipeline, summary } from "./support/pipeline.ts";

const minuteMs = 60_000;
const dayMs = 86_400_000;
/** Yesterday, noon: nothing in here depends on the time of day. */
const noonMs = Math.floor(Date.now() / dayMs) * dayMs - dayMs / 2;
const because = (reason: ErrorReason) => (error: unknown) => isServiceError(error, reason);

suite("billing-aggregator", { skip: noEngine }, () => {
  const stack = new AsyncDisposableStack();
  let clickHouse: ClickHouse;
  let pipeline: Pipeline;
  const nowMs = noonMs + 10 * minuteMs;
  before(async () => {
    clickHouse = stack.use(await temporaryEngine()).clickHouse;
    pipeline = stack.use(await startPipeline({ clickHouse, nowMs: () => nowMs }));
  });
  after(() => stack.disposeAsync());

  const billaged = () => pipeline.client("billaged");
  const usageOf = (
    tenantId: string,
    question: { appId?: string; vmId?: string; fromMs?: bigint; toMs?: bigint } = {},
  ) => pipeline.client("gatewayd", tenantId).queryUsage({ tenantId, fromMs: BigInt(noonMs), ...question });

  test("usage is complete, priced and proven as soon as its batches are confirmed", async () => {
    const series = testSeries();
    const windows = testWindows(series, { fromMs: noonMs + 1_500, toMs: noonMs + 100_000 }, [
      {
        cpuTimeUs: 30_000_000n,
        memoryBytes: gibBytes,
        residentBytes: gibBytes / 4n,
        diskBytes: 2n * gibBytes,
        netOutBytes: gibBytes,
        netInBytes: 7n,
        diskReadBytes: 8n,
        diskWriteBytes: 9n,
        samplesMissing: 20,
        gap: { fromMs: 57_000, toMs: 58_500 },
      },
      { cpuTimeUs: 12_345_678n, memoryBytes: gibBytes, gap: { fromMs: 0, toMs: 500 } },
    ]);
    const settled = await publish(billaged(), batchesByMinute(series.hostId, windows));
    assert.deepEqual(
      settled.map(({ outcome }) => outcome),
      ["ACCEPTED", "ACCEPTED"],
    );
    const report = await usageOf(series.tenantId);
    const memoryByteMs = gibBytes * 98_500n;
    const diskByteMs = 2n * gibBytes * 58_500n;
    const line = {
      app: series.appId,
      vm: "",
      cpuTimeUs: 42_345_678n,
      memoryByteMs: `${memoryByteMs}`,
      residentByteMs: `${(gibBytes / 4n) * 58_500n}`,
      diskByteMs: `${diskByteMs}`,
      disk: [8n, 9n],
      net: [7n, gibBytes],
      meters: {
        cpu_time: ["42345678", "0.000847"],
        memory: [`${memoryByteMs}`, "0.000246"], // 0.00024625
        disk: [`${diskByteMs}`, "0.000005"], // 0.00000468
        net_out: [`${gibBytes}`, "0.050000"],
        net_in: ["7", "0.000000"],
        disk_read: ["8", "0.000000"],
        disk_write: ["9", "0.000000"],
      },
      amount: "0.051098 USD",
      samples: "965/985",
      gaps: [[noonMs + 58_500, noonMs + 60_500]], // one gap, though a minute ends within
      covered: [noonMs + 1_500, noonMs + 100_000],
      complete: true,
    };
    assert.deepEqual(summary(report), {
      apps: [line],
      vms: [{ ...line, vm: series.vmId }],
      total: "0.051098 USD",
      book: defaultPriceBook.hash,
    });
    assert.equal(report.priceBookId, defaultPriceBook.id);
    assert.equal(report.fromMs, BigInt(noonMs));

    const proof = pipeline.client("gatewayd", series.tenantId).listUsageWindows({
      tenantId: series.tenantId,
      vmId: series.vmId,
    });
    const shown = await Array.fromAsync(proof, (window) => Buffer.from(toBinary(UsageWindowSchema, window)));
    assert.deepEqual(
      shown,
      windows.map((window) => Buffer.from(toBinary(UsageWindowSchema, window))),
    );
  });

  test("what is shown adds up: meters to lines, VMs to apps, apps to the total", async () => {
    const { tenantId, hostId } = testSeries();
    const apps = [newId("app"), newId("app")];
    const windows = Array.from({ length: 9 }, (_, i) =>
      testWindows(
        testSeries({ tenantId, hostId, appId: apps[i % 2] ?? "" }),
        { fromMs: noonMs, toMs: noonMs + 59_000 },
        [
          { cpuTimeUs: 25_000n * BigInt(i), memoryBytes: 333_333_333n, netOutBytes: 10_737n }, // all of them end in halves
        ],
      ),
    ).flat();
    await publish(billaged(), batchesByMinute(hostId, windows));
    const { apps: appLines, vms, total } = await usageOf(tenantId);
    const units = (amount: string | undefined) => BigInt((amount ?? "").replace(".", ""));
    const sum = (amounts: readonly (string | undefined)[]) => amounts.reduce((all, amount) => all + units(amount), 0n);
    assert.equal(appLines.length, 2);
    for (const line of [...appLines, ...vms]) {
      assert.equal(sum(line.meters.map(({ amount }) => amount?.amount)), units(line.amount?.amount));
    }
    for (const app of appLines) {
      const ofApp = vms.filter(({ appId }) => appId === app.appId);
      assert.equal(sum(ofApp.map(({ amount }) => amount?.amount)), units(app.amount?.amount));
      assert.equal(
        ofApp.reduce((all, vm) => all + (vm.quantities?.cpuTimeUs ?? 0n), 0n),
        app.quantities?.cpuTimeUs,
      );
    }
    assert.equal(sum(appLines.map(({ amount }) => amount?.amount)), units(total?.amount));
    assert.equal((await usageOf(tenantId, { appId: apps[0] ?? "" })).vms.length, 5);
    const one = await usageOf(tenantId, { vmId: vms[3]?.vmId ?? "" });
    assert.deepEqual(summary(one).vms, [summary({ ...one, vms: [vms[3] as (typeof vms)[number]] }).vms[0]]);
  });

  test("an incarnation that runs, or of which a window is missing, is not complete", async () => {
    const series = testSeries();
    const life = { fromMs: noonMs, toMs: noonMs + 4 * minuteMs };
    const windows = testWindows(series, life, [
      { cpuTimeUs: 1n },
      { cpuTimeUs: 2n },
      { cpuTimeUs: 4n },
      { cpuTimeUs: 8n },
    ]);
    const batches = batchesByMinute(series.hostId, windows);
    const state = async () => {
      const { vms, asOfMs } = await usageOf(series.tenantId);
      return [vms[0]?.complete, vms[0]?.quantities?.cpuTimeUs, Number(asOfMs) - noonMs];
    };
    await publish(billaged(), batches.slice(0, 1));
    assert.deepEqual(await state(), [false, 1n, 0]); // the host has reached its first minute
    await publish(billaged(), batches.slice(2));
    assert.deepEqual((await state()).slice(0, 2), [false, 13n]);
    await publish(billaged(), batches.slice(1, 2));
    assert.deepEqual((await state()).slice(0, 2), [true, 15n]);
    const second = testWindows({ ...series, incarnation: 2 }, { ...life, running: true }, [{ cpuTimeUs: 16n }]);
    await publish(billaged(), [testBatch({ hostId: series.hostId, minuteAtMs: noonMs, batchSeq: 9, windows: second })]);
    assert.deepEqual((await state()).slice(0, 2), [false, 31n]);
  });

  test("a period is made of whole windows and may begin within a life", async () => {
    const series = testSeries();
    const minutes = Array.from({ length: 5 }, (_, i) => ({ cpuTimeUs: 10n ** BigInt(i) }));
    const windows = testWindows(series, { fromMs: noonMs, toMs: noonMs + 5 * minuteMs }, minutes);
    await publish(billaged(), batchesByMinute(series.hostId, windows));
    const cpu = async (fromMs: number, toMs: number) => {
      const report = await usageOf(series.tenantId, { fromMs: BigInt(noonMs + fromMs), toMs: BigInt(noonMs + toMs) });
      return [report.vms[0]?.quantities?.cpuTimeUs, report.vms[0]?.complete];
    };
    assert.deepEqual(await cpu(0, 5 * minuteMs), [11_111n, true]);
    assert.deepEqual(await cpu(minuteMs, 2 * minuteMs), [10n, false]);
    assert.deepEqual(await cpu(2 * minuteMs, 6 * minuteMs), [11_100n, true]);
    assert.deepEqual(await cpu(minuteMs + 1, 2 * minuteMs + 1), [110n, false]); // widened to whole minutes
    assert.deepEqual(await cpu(-minuteMs, 0), [undefined, undefined]);
  });

  test("a batch is taken once, and what breaks an invariant is told, kept and not billed", async () => {
    const series = testSeries();
    const { hostId } = series;
    const windows = testWindows(series, { fromMs: noonMs, toMs: noonMs + 110_000 }, [
      { cpuTimeUs: 5n },
      { cpuTimeUs: 7n },
    ]);
    const batches = batchesByMinute(hostId, windows);
    assert.deepEqual(
      (await publish(billaged(), [...batches, ...batches])).map(({ outcome }) => outcome),
      ["ACCEPTED", "ACCEPTED", "DUPLICATE", "DUPLICATE"],
    );
    const good = testWindows(testSeries({ hostId, tenantId: series.tenantId }), { fromMs: noonMs, toMs: noonMs + 9 }, [
      { cpuTimeUs: 100n },
    ]);
    const future = testWindows(
      testSeries({ hostId, tenantId: series.tenantId }),
      { fromMs: nowMs + 6 * minuteMs, toMs: nowMs + 7 * minuteMs },
      [{ cpuTimeUs: 1000n }],
    );
    const odd = testBatch({ hostId, minuteAtMs: noonMs, batchSeq: 5, windows: [...future, ...good] });
    const [settled] = await publish(billaged(), [odd]);
    assert.equal(settled?.outcome, "QUARANTINED");
    assert.match(settled?.detail ?? "", /^1 of 2 windows are set aside, window 0: it starts more than five minutes/);
    const forged = testBatch({ hostId, minuteAtMs: noonMs, batchSeq: 1, windows: good });
    const garbage = envelopeOf("a".repeat(64), Buffer.from("garbage"));
    assert.deepEqual(await publish(billaged(), [forged, garbage]), [
      { outcome: "QUARANTINED", detail: "another batch was taken under its id" },
      { outcome: "QUARANTINED", detail: "it is not a WindowBatch" },
    ]);
    const { vms } = await usageOf(series.tenantId, { toMs: BigInt(nowMs + 10 * minuteMs) });
    assert.deepEqual(
      vms.map(({ quantities }) => `${quantities?.cpuTimeUs}`).toSorted((a, b) => a.length - b.length),
      ["12", "100"],
    );
    const kept = await pipeline.sql.query("SELECT batch_id FROM quarantined_batch WHERE batch_id IN (?, ?)", [
      forged.batchId,
      garbage.batchId,
    ]);
    assert.equal(kept.length, 2);
  });

  test("a damaged batch ends the stream, unsettled, and is welcome whole", async () => {
    const series = testSeries();
    const batch = testBatch({ hostId: series.hostId, minuteAtMs: noonMs, batchSeq: 1, windows: [] });
    await assert.rejects(publish(billaged(), [{ ...batch, sha256: Buffer.alloc(32) }]), because("BATCH_DAMAGED"));
    await assert.rejects(publish(billaged(), [{ ...batch, sha256: Buffer.alloc(31) }]), because("INVALID_REQUEST"));
    await assert.rejects(publish(billaged(), [{ ...batch, batchId: "../etc" }]), because("INVALID_REQUEST"));
    assert.equal((await publish(billaged(), [batch]))[0]?.outcome, "ACCEPTED");
  });

  test("late data makes a revision, and only the last one counts", async () => {
    const series = testSeries();
    const windows = testWindows(series, { fromMs: noonMs, toMs: noonMs + 110_000 }, [
      { samplesMissing: 100 },
      { cpuTimeUs: 1n },
    ]);
    await publish(billaged(), batchesByMinute(series.hostId, windows));
    const [first] = windows as [(typeof windows)[number]];
    const better = testBatch({ hostId: series.hostId, minuteAtMs: noonMs, batchSeq: 8, windows: [revised(first)] });
    assert.equal((await publish(billaged(), [better]))[0]?.outcome, "ACCEPTED");
    const [line] = (await usageOf(series.tenantId)).vms;
    assert.deepEqual([line?.samplesSeen, line?.complete], [1100n, true]);
  });

  test("a log that replaces a lost one measures from the baseline again, and nothing counts twice", async () => {
    const series = testSeries();
    const minutes = [{ cpuTimeUs: 5n }, { cpuTimeUs: 7n }, { cpuTimeUs: 9n }];
    const life = { fromMs: noonMs, toMs: noonMs + 4 * minuteMs };
    const delivered = testWindows(series, { ...life, toMs: noonMs + 3 * minuteMs, running: true }, minutes);
    const again = testWindows(series, life, [{}, {}, {}, { cpuTimeUs: 33n }]);
    const batches = [...batchesByMinute(series.hostId, delivered, 1), ...batchesByMinute(series.hostId, again, 2)];
    const settled = await publish(billaged(), batches);
    assert.deepEqual(new Set(settled.map(({ outcome }) => outcome)), new Set(["ACCEPTED"]));
    const [line] = (await usageOf(series.tenantId)).vms;
    assert.deepEqual([line?.quantities?.cpuTimeUs, line?.complete], [33n, true]);
    // What the lost log still had on its way changes nothing.
    await publish(billaged(), [
      testBatch({ hostId: series.hostId, minuteAtMs: noonMs, batchSeq: 9, windows: delivered }),
    ]);
    assert.equal((await usageOf(series.tenantId)).vms[0]?.quantities?.cpuTimeUs, 33n);
  });

  test("usage belongs to its tenant, and calls to those who are allowed", async () => {
    const series = testSeries();
    const windows = testWindows(series, { fromMs: noonMs, toMs: noonMs + 50_000 }, [{ cpuTimeUs: 5n }]);
    await publish(billaged(), batchesByMinute(series.hostId, windows));
    const stranger = newId("tenant");
    const asStranger = pipeline.client("gatewayd", stranger);
    await assert.rejects(asStranger.queryUsage({ tenantId: series.tenantId }), because("TENANT_MISMATCH"));
    const { apps, vms, total } = await usageOf(stranger, { appId: series.appId, vmId: series.vmId });
    assert.deepEqual([apps, vms, total?.amount], [[], [], "0.000000"]);
    const windowsOf = (client: typeof asStranger, tenantId: string) =>
      Array.fromAsync(client.listUsageWindows({ tenantId, vmId: series.vmId }));
    await assert.rejects(windowsOf(asStranger, series.tenantId), because("TENANT_MISMATCH"));
    assert.deepEqual(await windowsOf(asStranger, stranger), []);
    const nobody = pipeline.client("gatewayd");
    await assert.rejects(nobody.queryUsage({ tenantId: series.tenantId }), because("PRINCIPAL_REQUIRED"));
    await assert.rejects(publish(nobody, []), because("CALLER_NOT_ALLOWED"));
    await assert.rejects(pipeline.client("metald").listPriceBooks({}), because("CALLER_NOT_ALLOWED"));
    await assert.rejects(pipeline.client("gatewayd").putPriceBook({}), because("CALLER_NOT_ALLOWED"));
  });

  test("questions that cannot be answered are refused by name", async () => {
    const tenantId = newId("tenant");
    await assert.rejects(usageOf(tenantId, { appId: "app_x" }), because("INVALID_REQUEST"));
    await assert.rejects(usageOf(tenantId, { vmId: "' OR 1=1" }), because("INVALID_REQUEST"));
    await assert.rejects(usageOf(tenantId, { fromMs: 2n, toMs: 1n }), because("INVALID_REQUEST"));
    await assert.rejects(usageOf(tenantId, { fromMs: -1n }), because("INVALID_REQUEST"));
    await assert.rejects(usageOf(tenantId, { toMs: 2n ** 62n }), because("INVALID_REQUEST"));
    const client = pipeline.client("gatewayd", tenantId);
    await assert.rejects(client.getInvoice({ tenantId, invoiceId: "inv_1" }), because("UNIMPLEMENTED"));
    await assert.rejects(client.listInvoices({ tenantId }), because("UNIMPLEMENTED"));
    await assert.rejects(client.verifyInvoice({ tenantId, invoiceId: "inv_1" }), because("UNIMPLEMENTED"));
    await assert.rejects(pipeline.client("operator").closeInvoice({ tenantId }), because("UNIMPLEMENTED"));
  });
});
