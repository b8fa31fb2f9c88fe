import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import type { UsageWindow as UsageWindowMessage } from "@unkey/api/metering";
import type { ClickHouse } from "@unkey/clickhouse";
import * as fc from "fast-check";
import { resolutionMs } from "../domain/period.ts";
import { defaultPriceBook, sealPriceBook } from "../domain/price-book.ts";
import type { UsageUnit } from "../domain/usage-unit.ts";
import type { UsageWindow } from "../domain/usage-window.ts";
import { seriesLife } from "../testing/arbitrary-windows.ts";
import { noEngine, temporaryEngine } from "../testing/engine.ts";
import { revised, testSeries, testWindows } from "../testing/simulated-host.ts";
import { foldUnits, readWindows, unitOf } from "../testing/window-model.ts";
import { ClickHouseUsageStore } from "./clickhouse-usage-store.ts";

const hourMs = resolutionMs["1h"];
const dayMs = resolutionMs["1d"];
const todayMs = Math.floor(Date.now() / dayMs) * dayMs;
const book = defaultPriceBook;
const everything = { fromMs: 0, toMs: todayMs + 2 * dayMs };

suite("the usage store in ClickHouse", { skip: noEngine }, () => {
  const stack = new AsyncDisposableStack();
  let clickHouse: ClickHouse;
  let store: ClickHouseUsageStore;
  before(async () => {
    clickHouse = stack.use(await temporaryEngine()).clickHouse;
    store = new ClickHouseUsageStore(clickHouse);
    await store.prepare();
  });
  after(() => stack.disposeAsync());

  const insert = (windows: readonly UsageWindow[], token: string) =>
    store.insertWindows(
      windows.map((window) => ({ window, batchId: token, book })),
      token,
    );
  const rollUp = async (windows: readonly UsageWindow[], version: number) => {
    const hostId = windows[0]?.hostId ?? "";
    const hours = new Set(windows.map(({ startMs }) => Math.floor(startMs / hourMs) * hourMs));
    for (const hour of hours) {
      for (const resolution of ["1m", "5m", "1h"] as const) await store.rollUp(resolution, hostId, hour, version);
    }
    const days = new Set([...hours].map((hour) => Math.floor(hour / dayMs) * dayMs));
    for (const day of days) {
      await store.rollUp("1d", hostId, day, version);
      await store.recordDay(hostId, day, version, [book]);
    }
  };
  const queryOf = ({ tenantId }: Pick<UsageWindow, "tenantId">) => ({ tenantId, appId: "", vmId: "" });
  const unitsOf = (windows: readonly UsageWindow[], source: "window" | "1h" | "1d") =>
    store.units(queryOf(windows[0] as UsageWindow), { source, ...everything });

  test("keeps each table as long as it says, with the tenant first in every key", async () => {
    const rows = await clickHouse.query<{
      name: string;
      engine_full: string;
      sorting_key: string;
      partition_key: string;
    }>(
      `SELECT name, engine_full, sorting_key, partition_key FROM system.tables
       WHERE database = currentDatabase() AND name NOT LIKE '.%' ORDER BY name`,
    );
    const kept = Object.fromEntries(
      rows.map(({ name, engine_full }) => [name, /TTL start \+ toIntervalDay\((\d+)\)/.exec(engine_full)?.[1]]),
    );
    assert.deepEqual(kept, {
      billing_record: undefined,
      store_identity: undefined,
      usage_1d: "1826",
      usage_1h: "400",
      usage_1m: "30",
      usage_5m: "90",
      usage_window: "95",
    });
    for (const { name, engine_full, sorting_key, partition_key } of rows) {
      if (name === "store_identity") continue;
      assert.match(sorting_key, /^tenant_id, app_id, vm_id, /, name);
      assert.match(engine_full, /^ReplacingMergeTree\(version\)/, name);
      // A row's versions meet only inside a partition, so it is a function of the key.
      const partitionedBy = /\((start|day)\)$/.exec(partition_key)?.[1] ?? "nothing";
      assert.ok(sorting_key.split(", ").includes(partitionedBy), name);
    }
    const window = rows.find(({ name }) => name === "usage_window");
    assert.match(window?.engine_full ?? "", /non_replicated_deduplication_window = 10000/);
    assert.match(window?.engine_full ?? "", /ttl_only_drop_parts = 1/);
  });

  test("drops windows that have outlived their table, and no record", async () => {
    const old = readWindows(
      testWindows(testSeries(), { fromMs: todayMs - 96 * dayMs, toMs: todayMs - 96 * dayMs + 9 }),
    );
    const fresh = readWindows(testWindows(testSeries(), { fromMs: todayMs, toMs: todayMs + 9 }));
    await clickHouse.exec("SYSTEM STOP TTL MERGES"); // or the windows would be gone before they are rolled up
    for (const windows of [old, fresh]) {
      await insert(windows, `ttl ${windows[0]?.vmId}`);
      await rollUp(windows, 1);
    }
    await clickHouse.exec("SYSTEM START TTL MERGES");
    await clickHouse.exec("OPTIMIZE TABLE usage_window FINAL");
    await clickHouse.exec("OPTIMIZE TABLE usage_1m FINAL");
    await clickHouse.exec("OPTIMIZE TABLE billing_record FINAL");
    const left = async (table: string, windows: readonly UsageWindow[]) => {
      const [row] = await clickHouse.query<{ n: number }>(
        `SELECT toUInt32(count()) AS n FROM ${table} WHERE tenant_id = {tenant:String}`,
        { tenant: windows[0]?.tenantId ?? "" },
      );
      return row?.n;
    };
    assert.deepEqual(await Promise.all(["usage_window", "usage_1m"].map((table) => left(table, old))), [0, 0]);
    assert.deepEqual(await Promise.all(["usage_window", "usage_1m"].map((table) => left(table, fresh))), [1, 1]);
    assert.deepEqual(await Promise.all([left("usage_1d", old), left("billing_record", old)]), [1, 7]);
  });

  test("an hour, a day and the windows themselves fold to the same usage", async () => {
    let version = 0;
    await fc.assert(
      fc.asyncProperty(
        seriesLife(todayMs - hourMs + 2 * 60_000, { maxMinutes: 130 }),
        fc.uniqueArray(fc.nat(), { maxLength: 2 }),
        async (messages: UsageWindowMessage[], missing) => {
          version += 1;
          const all = readWindows(messages);
          const lost = new Set(missing.map((place) => place % all.length));
          const windows = all.filter((_, index) => !lost.has(index));
          fc.pre(windows.length > 0);
          await insert(windows, `fold ${version}`);
          await rollUp(windows, version);
          const units = windows.map((window) => unitOf(window));
          const whole: UsageUnit[] = [foldUnits(units)];
          for (const source of ["window", "1h", "1d"] as const) {
            assert.deepEqual(await unitsOf(windows, source), whole, source);
          }
          for (const resolution of ["1m", "5m", "1h", "1d"] as const) {
            const [row] = await clickHouse.query<{ buckets: number; cpu: string; windows: string }>(
              `SELECT toUInt32(count()) AS buckets, sum(cpu_time_us) AS cpu, sum(windows) AS windows
               FROM usage_${resolution} FINAL WHERE tenant_id = {tenant:String}`,
              { tenant: windows[0]?.tenantId ?? "" },
            );
            const grain = resolutionMs[resolution];
            assert.deepEqual(row, {
              buckets: new Set(windows.map(({ startMs }) => Math.floor(startMs / grain))).size,
              cpu: `${whole[0]?.quantities.cpuTimeUs}`,
              windows: `${windows.length}`,
            });
          }
        },
      ),
      { numRuns: 12, endOnFailure: true },
    );
  });

  test("a link breaks in time, in counters and in hash, each by itself; a revised window is linked without the hash", async () => {
    const cases: readonly (readonly [bigint, Partial<UsageWindow>, Partial<UsageWindow>])[] = [
      [0n, {}, {}],
      [1n, {}, { coveredFromMs: todayMs + 60_001 }],
      [1n, {}, { opening: {} }],
      [1n, {}, { previousHash: "0".repeat(64) }],
      [0n, { revision: 1 }, { previousHash: "0".repeat(64) }],
    ];
    for (const [index, [broken, first, second]] of cases.entries()) {
      const messages = testWindows(testSeries(), { fromMs: todayMs, toMs: todayMs + 90_000 }, [{ cpuTimeUs: 5n }]);
      const windows = readWindows(messages).map((window, i) => ({ ...window, ...(i === 0 ? first : second) }));
      await insert(windows, `links ${index}`);
      const found = await unitsOf(windows, "window");
      assert.deepEqual(found, [foldUnits(windows.map((window) => unitOf(window)))]);
      assert.equal(found[0]?.brokenLinks, broken, `case ${index}`);
    }
  });

  test("the same insert again, with its token or long after it, changes nothing", async () => {
    const windows = readWindows(
      testWindows(testSeries(), { fromMs: todayMs, toMs: todayMs + 170_000 }, [{ cpuTimeUs: 5n }]),
    );
    await insert(windows, "same");
    const before = await unitsOf(windows, "window");
    await insert(windows, "same");
    await insert(windows, "after the token was forgotten");
    assert.deepEqual(await unitsOf(windows, "window"), before);
    assert.equal(before[0]?.windows, 3n);
  });

  test("of two revisions the higher stays, of two logs the newer, whatever comes first", async () => {
    const messages = testWindows(testSeries(), { fromMs: todayMs, toMs: todayMs + 50_000 }, [
      { cpuTimeUs: 5n, samplesMissing: 100 },
    ]);
    const [first] = messages as [UsageWindowMessage];
    const better = readWindows([revised(first)]);
    const relogged = readWindows([revised(first, { revision: 0, samplesSeen: 1 })], 2);
    await insert(better, "better");
    await insert(readWindows(messages), "first");
    assert.equal((await unitsOf(better, "window"))[0]?.samplesSeen, 500n);
    await insert(relogged, "relogged");
    assert.equal((await unitsOf(better, "window"))[0]?.samplesSeen, 1n);
  });

  test("a later roll-up wins over an earlier one, also when it is written first", async () => {
    const windows = readWindows(
      testWindows(testSeries(), { fromMs: todayMs, toMs: todayMs + 110_000 }, [{ cpuTimeUs: 5n }]),
    );
    await insert(windows, "versions");
    await rollUp(windows, 9);
    const complete = await unitsOf(windows, "1d");
    await clickHouse.exec("DELETE FROM usage_window WHERE vm_id = {vm:String}", { vm: windows[0]?.vmId ?? "" });
    await insert(windows.slice(0, 1), "half");
    await rollUp(windows.slice(0, 1), 8);
    assert.deepEqual(await unitsOf(windows, "1d"), complete);
  });

  test("nothing is shown to another tenant, and filters narrow", async () => {
    const mine = testSeries();
    const second = testSeries({ tenantId: mine.tenantId, hostId: mine.hostId });
    const theirs = testSeries({ hostId: mine.hostId, appId: mine.appId, vmId: mine.vmId, incarnation: 2 });
    const life = { fromMs: todayMs, toMs: todayMs + 50_000 };
    const gap = { gap: { fromMs: 0, toMs: 2_000 } };
    const windows = [mine, second, theirs].flatMap((series) => readWindows(testWindows(series, life, [gap])));
    await insert(windows, "tenants");
    const query = { tenantId: mine.tenantId, appId: "", vmId: "" };
    const vmsOf = async (narrow: object) =>
      (await store.units({ ...query, ...narrow }, { source: "window", ...everything }))
        .map(({ vmId }) => vmId)
        .toSorted();
    assert.deepEqual(await vmsOf({}), [mine.vmId, second.vmId].toSorted());
    assert.deepEqual(await vmsOf({ appId: second.appId }), [second.vmId]);
    assert.deepEqual(await vmsOf({ vmId: mine.vmId }), [mine.vmId]);
    assert.deepEqual(await vmsOf({ appId: second.appId, vmId: mine.vmId }), []);
    assert.equal((await store.gaps(query, everything, 10)).length, 2);
    assert.equal((await store.gaps(query, everything, 1)).length, 1);
    const records = await store.records({ ...query, vmId: mine.vmId }, everything, undefined, 10);
    assert.deepEqual(
      records.map(({ incarnation }) => incarnation),
      [1],
    );
    for (const hostile of ["' OR 1 = 1 --", "\\", "tenant_%"]) {
      assert.deepEqual(await store.units({ ...query, tenantId: hostile }, { source: "window", ...everything }), []);
    }
  });

  test("windows come back as they were received, page by page", async () => {
    const series = testSeries();
    const messages = testWindows(series, { fromMs: todayMs + 7, toMs: todayMs + 6 * 60_000 });
    const windows = readWindows(messages);
    const again = readWindows(
      testWindows({ ...series, incarnation: 2 }, { fromMs: todayMs + 5 * 60_000, toMs: todayMs + 6 * 60_000 }),
    );
    await insert([...again, ...windows], "records");
    const query = { tenantId: series.tenantId, appId: "", vmId: series.vmId };
    const read: string[] = [];
    for (let page = await store.records(query, everything, undefined, 2); page.length > 0; ) {
      read.push(...page.map(({ hash }) => hash));
      page = await store.records(query, everything, page.at(-1), 2);
    }
    assert.deepEqual(
      read,
      [...windows, ...again].map(({ hash }) => hash),
    );
  });

  test("a day under two books has a record for each, with what each asks", async () => {
    const dearer = sealPriceBook({
      id: "book_0123456789abcdefghjkmnpqrs",
      currency: "USD",
      exponent: 2,
      effectiveFromMs: todayMs + 60_000,
      prices: [{ meter: "cpu_time", amount: "-0.5", perQuantity: "7" }],
    });
    const windows = readWindows(
      testWindows(testSeries(), { fromMs: todayMs, toMs: todayMs + 110_000 }, [
        { cpuTimeUs: 5n },
        { cpuTimeUs: 2n ** 60n },
      ]),
    );
    const [first, second] = windows as [UsageWindow, UsageWindow];
    await store.insertWindows(
      [
        { window: first, batchId: "books", book },
        { window: second, batchId: "books", book: dearer },
      ],
      "books",
    );
    await store.rollUp("1h", first.hostId, todayMs, 1);
    await store.rollUp("1d", first.hostId, todayMs, 1);
    await store.recordDay(first.hostId, todayMs, 1, [book, dearer]);
    const rows = await clickHouse.query(
      `SELECT meter, quantity, unit, price_amount, price_per, currency, exponent, price_book_hash FROM billing_record FINAL
       WHERE tenant_id = {tenant:String} AND (meter = 'cpu_time' OR quantity > 0) ORDER BY quantity`,
      { tenant: first.tenantId },
    );
    const common = { meter: "cpu_time", unit: "us", currency: "USD" };
    assert.deepEqual(rows, [
      {
        ...common,
        quantity: "5",
        price_amount: "0.00002",
        price_per: "1000000",
        exponent: 6,
        price_book_hash: book.hash,
      },
      {
        ...common,
        quantity: `${2n ** 60n}`,
        price_amount: "-0.5",
        price_per: "7",
        exponent: 2,
        price_book_hash: dearer.hash,
      },
    ]);
  });

  test("a store keeps its name; one made anew has another", async () => {
    const id = await store.prepare();
    assert.equal(await new ClickHouseUsageStore(clickHouse).prepare(), id);
    await using other = await temporaryEngine();
    assert.notEqual(await new ClickHouseUsageStore(other.clickHouse).prepare(), id);
  });
});
