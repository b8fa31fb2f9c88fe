import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { ClickHouse } from "@unkey/clickhouse";
import type { Cursor, UsageStore } from "../src/ports.ts";
import { noEngine, temporaryEngine, temporaryFolder } from "../src/testing/engine.ts";
import { batchesByMinute, gibBytes, testBatch, testSeries, testWindows } from "../src/testing/simulated-host.ts";
import { type Pipeline, publish, startPipeline, summary } from "./support/pipeline.ts";

const hourMs = 3_600_000;
/** A quarter of an hour before the last whole hour began, so that two hours are touched. */
const beginMs = Math.floor(Date.now() / hourMs) * hourMs - hourMs - 900_000;

/** What the projector writes to, dead from its n-th write on: before it happens, or right after. */
class DyingWrites {
  dead = false;
  #left: number;
  readonly #after: boolean;

  constructor(left: number, after: boolean) {
    this.#left = left;
    this.#after = after;
  }

  async #write<T>(body: () => Promise<T>): Promise<T> {
    const last = this.#left-- === 0;
    if (this.#left < (this.#after ? -1 : 0) || (last && !this.#after)) return this.#die();
    const result = await body();
    return last ? this.#die() : result;
  }

  #die(): never {
    this.dead = true;
    throw new Error("the process is dead");
  }

  store(real: UsageStore): UsageStore {
    return {
      prepare: () => real.prepare(),
      units: (...args) => real.units(...args),
      gaps: (...args) => real.gaps(...args),
      records: (...args) => real.records(...args),
      ping: () => real.ping(),
      insertWindows: (...args) => this.#write(() => real.insertWindows(...args)),
      rollUp: (...args) => this.#write(() => real.rollUp(...args)),
      recordDay: (...args) => this.#write(() => real.recordDay(...args)),
    };
  }

  cursor(real: Cursor): Cursor {
    return {
      read: () => real.read(),
      // The one at the start names the store; only those that follow a projection count.
      write: (cursor) => (cursor.seq === 0 ? real.write(cursor) : this.#write(() => real.write(cursor))),
    };
  }
}

/** Waits for the cursor, since reports are ahead of it; false when the process died first. */
async function projected({ projector }: Pipeline, seq: number, dead: () => boolean = () => false): Promise<boolean> {
  for (let i = 0; i < 1200 && !dead(); i++) {
    if (projector.projectedSeq >= seq) return true;
    await delay(20);
  }
  return false;
}

suite("an aggregator that dies between any two writes", { skip: noEngine }, () => {
  const stack = new AsyncDisposableStack();
  let clickHouse: ClickHouse;
  before(async () => {
    clickHouse = stack.use(await temporaryEngine()).clickHouse;
  });
  after(() => stack.disposeAsync());

  /** Publishes a life of half an hour, dies, lives on, and tells the usage. Undefined when there was no n-th write. */
  async function liveThroughDeath(writes: number, afterIt: boolean) {
    await using folder = await temporaryFolder();
    const sqlPath = join(folder.path, "billing.sqlite");
    const dying = new DyingWrites(writes, afterIt);
    const series = testSeries();
    const minutes = Array.from({ length: 30 }, (_, i) => ({ cpuTimeUs: 2n ** BigInt(i), memoryBytes: gibBytes }));
    const windows = testWindows(series, { fromMs: beginMs, toMs: beginMs + 30 * 60_000 }, minutes);
    const [early, late] = [windows.slice(0, 12), windows.slice(12)];
    let survived = false;
    {
      await using doomed = await startPipeline({
        clickHouse,
        sqlPath,
        wrapStore: (store) => dying.store(store),
        wrapCursor: (cursor) => dying.cursor(cursor),
      });
      const batch = testBatch({ hostId: series.hostId, minuteAtMs: beginMs, batchSeq: 1, windows: early });
      const settled = await publish(doomed.client("billaged"), [batch]);
      assert.equal(settled[0]?.outcome, "ACCEPTED");
      survived = await projected(doomed, 1, () => dying.dead);
    }
    if (survived) return undefined;
    await using reborn = await startPipeline({ clickHouse, sqlPath });
    const batch = testBatch({ hostId: series.hostId, minuteAtMs: beginMs, batchSeq: 2, windows: late });
    await publish(reborn.client("billaged"), [batch]);
    await projected(reborn, 2);
    const { tenantId } = series;
    const question = { tenantId, fromMs: BigInt(beginMs), toMs: BigInt(beginMs + hourMs) };
    const [vm] = summary(await reborn.client("gatewayd", tenantId).queryUsage(question)).vms;
    const counts = await clickHouse.query<{ table: string; cpu: string }>(
      ["usage_1m", "usage_5m", "usage_1h", "usage_1d"]
        .map(
          (table) =>
            `SELECT '${table}' AS table, sum(cpu_time_us) AS cpu FROM ${table} FINAL WHERE vm_id = {vm:String}`,
        )
        .concat(
          "SELECT 'record' AS table, toUInt64(sum(quantity)) AS cpu FROM billing_record FINAL WHERE vm_id = {vm:String} AND meter = 'cpu_time'",
        )
        .join(" UNION ALL "),
      { vm: series.vmId },
    );
    return {
      cpu: vm?.cpuTimeUs,
      memory: vm?.memoryByteMs,
      complete: vm?.complete,
      derived: new Set(counts.map(({ cpu }) => cpu)),
      tables: counts.length,
    };
  }

  for (const afterIt of [false, true]) {
    test(`loses nothing and doubles nothing, dying ${afterIt ? "right after" : "right before"} each of them`, async () => {
      const cpu = 2n ** 30n - 1n;
      const expected = {
        cpu,
        memory: `${gibBytes * 1_800_000n}`,
        complete: true,
        derived: new Set([`${cpu}`]),
        tables: 5,
      };
      let deaths = 0;
      for (; deaths < 50; deaths++) {
        const found = await liveThroughDeath(deaths, afterIt);
        if (found === undefined) break;
        assert.deepEqual(found, expected, `death at write ${deaths}`);
      }
      // The windows, an hour and a day for reports, two rollups, the records, the cursor.
      assert.ok(deaths >= 7, `${deaths} places to die`);
    });
  }

  test("a store that was lost is made again from the inbox", async () => {
    await using folder = await temporaryFolder();
    const sqlPath = join(folder.path, "billing.sqlite");
    const series = testSeries();
    const minutes = Array.from({ length: 8 }, (_, i) => ({ cpuTimeUs: BigInt(i), gap: { fromMs: 0, toMs: 5_000 } }));
    const windows = testWindows(series, { fromMs: beginMs, toMs: beginMs + 8 * 60_000 }, minutes);
    const { tenantId } = series;
    const question = { tenantId, fromMs: BigInt(beginMs), toMs: BigInt(beginMs + hourMs) };
    const reports = [];
    for (const engine of ["first", "second"]) {
      await using lost = await temporaryEngine();
      await using pipeline = await startPipeline({ clickHouse: lost.clickHouse, sqlPath });
      if (engine === "first") await publish(pipeline.client("billaged"), batchesByMinute(series.hostId, windows));
      reports.push(summary(await pipeline.client("gatewayd", tenantId).queryUsage(question)));
    }
    assert.equal(reports[0]?.vms[0]?.cpuTimeUs, 28n);
    assert.equal(reports[0]?.vms[0]?.gaps.length, 8);
    assert.deepEqual(reports[1], reports[0]);
  });

  test("a store that does not answer delays usage, not the taking of batches", async () => {
    await using pipeline = await startPipeline({
      clickHouse,
      catchUpMs: 200,
      wrapStore: (store) => ({ ...new DyingWrites(0, false).store(store), prepare: () => store.prepare() }),
    });
    const series = testSeries();
    const windows = testWindows(series, { fromMs: beginMs, toMs: beginMs + 50_000 }, [{ cpuTimeUs: 1n }]);
    const [settled] = await publish(pipeline.client("billaged"), batchesByMinute(series.hostId, windows));
    assert.equal(settled?.outcome, "ACCEPTED");
    const { tenantId } = series;
    const report = await pipeline.client("gatewayd", tenantId).queryUsage({ tenantId, fromMs: BigInt(beginMs) });
    assert.deepEqual(report.vms, []);
    assert.equal(Number(report.asOfMs), beginMs); // and it does not claim to know more
    assert.match(pipeline.projector.failure ?? "", /dead/);
  });
});
