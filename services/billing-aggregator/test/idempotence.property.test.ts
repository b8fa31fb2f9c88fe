import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import type { UsageWindow } from "@unkey/api/metering";
import { newId } from "@unkey/base";
import type { ClickHouse } from "@unkey/clickhouse";
import * as fc from "fast-check";
import { defaultPriceBook } from "../src/domain/price-book.ts";
import { reportUsage, type UsageReport } from "../src/domain/usage-report.ts";
import { seriesName } from "../src/domain/usage-window.ts";
import { revisionsOf, seriesLife } from "../src/testing/arbitrary-windows.ts";
import { noEngine, temporaryEngine, temporaryFolder } from "../src/testing/engine.ts";
import { testBatch } from "../src/testing/simulated-host.ts";
import { readWindows, unitOf } from "../src/testing/window-model.ts";
import { publish, startPipeline, summary } from "./support/pipeline.ts";

const dayMs = 86_400_000;
/** Two minutes before a midnight, so that hours and days are crossed. */
const beginMs = Math.floor(Date.now() / dayMs) * dayMs - 120_000;
const period = { fromMs: beginMs - (beginMs % 60_000), toMs: beginMs + 3_600_000 };

interface History {
  readonly tenantId: string;
  readonly windows: readonly UsageWindow[];
  readonly revisions: readonly UsageWindow[];
}

/** What a tenant's VMs did on one host, and which of it was corrected later. */
const history: fc.Arbitrary<History> = fc
  .nat({ max: 1 })
  .chain((apps) => {
    const fields = { tenantId: newId("tenant"), hostId: newId("host") };
    const appIds = [newId("app"), newId("app")].slice(0, apps + 1);
    const lives = [0, 1, 2].map((i) =>
      seriesLife(beginMs, { fields: { ...fields, appId: appIds[i % appIds.length] ?? "" }, maxMinutes: 4 }),
    );
    return fc.tuple(fc.constant(fields.tenantId), fc.tuple(...lives));
  })
  .chain(([tenantId, lives]) => {
    const windows = lives.flat();
    return fc.record({
      tenantId: fc.constant(tenantId),
      windows: fc.constant(windows),
      revisions: revisionsOf(windows),
    });
  });

/** Batches as a host makes them, and an order in which they arrive: some twice, none in its place. */
const delivery = history.chain((what) => {
  const hostId = what.windows[0]?.series?.hostId ?? "";
  const minutes = [...Map.groupBy(what.windows, ({ windowStartMs }) => Number(windowStartMs))];
  const batches = [...minutes, ...what.revisions.map((window) => [beginMs, [window]] as const)].map(
    ([minuteAtMs, windows], index) => testBatch({ hostId, minuteAtMs, batchSeq: index + 1, windows }),
  );
  return fc.record({
    history: fc.constant(what),
    order: fc
      .tuple(fc.constant(batches), fc.subarray(batches))
      .chain(([once, again]) => fc.shuffledSubarray([...once, ...again], { minLength: once.length + again.length })),
    restartAfter: fc.nat({ max: batches.length }),
  });
});

/** The report by the shortest way: the last revision of each window, priced. */
function expected({ windows, revisions }: History): UsageReport {
  const latest = new Map(
    [...readWindows(windows), ...readWindows(revisions)].map((window) => [
      `${seriesName(window)} ${window.startMs}`,
      window,
    ]),
  );
  const gaps = [...latest.values()].flatMap((window) => window.gaps.map((gap) => ({ ...window, ...gap })));
  const units = [...latest.values()].map((window) => unitOf(window));
  return reportUsage({ period, units, gaps, books: [defaultPriceBook] });
}

suite("whatever arrives twice or late, the report is the same", { skip: noEngine }, () => {
  const stack = new AsyncDisposableStack();
  let clickHouse: ClickHouse;
  before(async () => {
    clickHouse = stack.use(await temporaryEngine()).clickHouse;
  });
  after(() => stack.disposeAsync());

  test("any order and any repetition of batches and revisions", async () => {
    await fc.assert(
      fc.asyncProperty(delivery, async ({ history: what, order, restartAfter }) => {
        const { tenantId } = what;
        await using folder = await temporaryFolder();
        const start = () =>
          startPipeline({ clickHouse, sqlPath: join(folder.path, "billing.sqlite"), nowMs: () => period.toMs });
        const settled: Awaited<ReturnType<typeof publish>> = [];
        {
          await using first = await start();
          settled.push(...(await publish(first.client("billaged"), order.slice(0, restartAfter))));
        }
        await using pipeline = await start();
        settled.push(...(await publish(pipeline.client("billaged"), order.slice(restartAfter))));
        assert.deepEqual(
          settled.filter(({ outcome }) => outcome === "QUARANTINED"),
          [],
        );
        const question = { tenantId, fromMs: BigInt(period.fromMs), toMs: BigInt(period.toMs) };
        const report = summary(await pipeline.client("gatewayd", tenantId).queryUsage(question));
        const model = expected(what);
        assert.deepEqual(
          report.vms.map((vm) => ({ ...vm, meters: undefined, amount: undefined })),
          model.vms.map((vm) => ({
            app: vm.appId,
            vm: vm.vmId,
            cpuTimeUs: vm.quantities.cpuTimeUs,
            memoryByteMs: `${vm.quantities.memoryByteMs}`,
            residentByteMs: `${vm.quantities.memoryResidentByteMs}`,
            diskByteMs: `${vm.quantities.diskByteMs}`,
            disk: [vm.quantities.diskReadBytes, vm.quantities.diskWriteBytes],
            net: [vm.quantities.netInBytes, vm.quantities.netOutBytes],
            meters: undefined,
            amount: undefined,
            samples: `${vm.samplesSeen}/${vm.samplesExpected}`,
            gaps: vm.gaps.map(({ fromMs, toMs }) => [fromMs, toMs]),
            covered: [vm.coveredFromMs, vm.coveredToMs],
            complete: vm.complete,
          })),
        );
        assert.equal(report.total.replace(/\D/g, "").replace(/^0+(?=.)/, ""), `${model.total}`);
      }),
      { numRuns: 10, endOnFailure: true }, // a smaller case would meet what the larger one left in the store
    );
  });
});
