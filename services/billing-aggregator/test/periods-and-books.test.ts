import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { type ErrorReason, isServiceError, newId } from "@unkey/base";
import type { ClickHouse } from "@unkey/clickhouse";
import { defaultPriceBook } from "../src/domain/price-book.ts";
import { noEngine, temporaryEngine } from "../src/testing/engine.ts";
import { batchesByMinute, gibBytes, testSeries, testWindows } from "../src/testing/simulated-host.ts";
import { publish, startPipeline, summary } from "./support/pipeline.ts";

const minuteMs = 60_000;
const dayMs = 86_400_000;
const midnightMs = Math.floor(Date.now() / dayMs) * dayMs - 2 * dayMs;

const because = (reason: ErrorReason) => (error: unknown) => isServiceError(error, reason);

suite("periods and price books", { skip: noEngine }, () => {
  const stack = new AsyncDisposableStack();
  let clickHouse: ClickHouse;
  before(async () => {
    clickHouse = stack.use(await temporaryEngine()).clickHouse;
  });
  after(() => stack.disposeAsync());

  test("cost that spans two books is split at the minute when the second takes effect", async () => {
    let nowMs = midnightMs;
    await using pipeline = await startPipeline({ clickHouse, nowMs: () => nowMs });
    const operator = pipeline.client("operator");
    const book = {
      currency: "USD",
      exponent: 4,
      prices: [{ meter: "net_out", amount: "3", perQuantity: `${gibBytes}` }],
    };
    const effectiveFromMs = midnightMs + 10 * minuteMs;
    const second = await operator.putPriceBook({
      priceBook: { ...book, priceBookId: newId("book"), effectiveFromMs: BigInt(effectiveFromMs) },
    });
    nowMs = midnightMs + 30 * minuteMs;
    const series = testSeries();
    const minutes = Array.from({ length: 6 }, () => ({ netOutBytes: gibBytes, cpuTimeUs: 1_000_000n }));
    const life = { fromMs: effectiveFromMs - 2 * minuteMs, toMs: effectiveFromMs + 4 * minuteMs };
    const windows = testWindows(series, life, minutes);
    await publish(pipeline.client("billaged"), batchesByMinute(series.hostId, windows));
    const ask = async (fromMs: number, toMs: number) => {
      const { tenantId } = series;
      const question = { tenantId, fromMs: BigInt(fromMs), toMs: BigInt(toMs) };
      const report = await pipeline.client("gatewayd", tenantId).queryUsage(question);
      const [vm] = summary(report).vms;
      return {
        netOut: vm?.meters["net_out"]?.[1],
        cpu: vm?.meters["cpu_time"]?.[1],
        book: report.priceBookHash,
        complete: vm?.complete,
      };
    };
    // Two minutes at 0.05 and four at 3, rounded to the finer of both books; the second book asks nothing for CPU time.
    const whole = { netOut: "12.100000", cpu: "0.000040", book: second.hash, complete: true };
    assert.deepEqual(await ask(midnightMs, midnightMs + dayMs), whole);
    assert.deepEqual(await ask(life.fromMs, life.toMs), whole);
    assert.deepEqual(await ask(life.fromMs, effectiveFromMs), {
      netOut: "0.100000",
      cpu: "0.000040",
      book: defaultPriceBook.hash,
      complete: false,
    });
    assert.deepEqual(await ask(effectiveFromMs, life.toMs), {
      netOut: "12.0000",
      cpu: "0.0000",
      book: second.hash,
      complete: true,
    });

    const yen = { ...book, currency: "JPY", exponent: 0, priceBookId: newId("book") };
    await operator.putPriceBook({ priceBook: { ...yen, effectiveFromMs: BigInt(nowMs + 6 * minuteMs) } });
    nowMs += 20 * minuteMs;
    const later = { fromMs: nowMs - 5 * minuteMs, toMs: nowMs - 4 * minuteMs };
    const again = testWindows({ ...series, incarnation: 2 }, later, minutes);
    await publish(pipeline.client("billaged"), batchesByMinute(series.hostId, again, 2));
    await assert.rejects(ask(midnightMs, nowMs), (error) => isServiceError(error, "USAGE_SPANS_CURRENCIES"));
    assert.equal((await ask(later.fromMs, nowMs)).netOut, "3");
  });

  test("days, hours and minutes give one answer, also when the windows are long gone", async () => {
    let nowMs = midnightMs + dayMs + 3_600_000;
    await using pipeline = await startPipeline({ clickHouse, nowMs: () => nowMs });
    const series = testSeries();
    // From 22:30 to 00:50: two days, three hours, 140 minutes.
    const life = { fromMs: midnightMs + dayMs - 90 * minuteMs, toMs: midnightMs + dayMs + 50 * minuteMs };
    const minutes = Array.from({ length: 140 }, (_, i) => ({ cpuTimeUs: BigInt(i), memoryBytes: gibBytes }));
    await publish(pipeline.client("billaged"), batchesByMinute(series.hostId, testWindows(series, life, minutes)));
    const ask = async (fromMs: number, toMs: number) => {
      const { tenantId } = series;
      const question = { tenantId, fromMs: BigInt(fromMs), toMs: BigInt(toMs) };
      const report = await pipeline.client("gatewayd", tenantId).queryUsage(question);
      const [vm] = summary(report).vms;
      return {
        cpu: Number(vm?.cpuTimeUs ?? -1),
        complete: vm?.complete,
        samples: vm?.samples,
        from: Number(report.fromMs),
      };
    };
    const all = { cpu: (139 * 140) / 2, complete: true, samples: "84000/84000" };
    const days = [midnightMs, midnightMs + 2 * dayMs] as const;
    const cuts: readonly (readonly [number, number])[] = [
      days,
      [life.fromMs, life.toMs],
      [life.fromMs - 7 * minuteMs, midnightMs + dayMs + 60 * minuteMs],
      [midnightMs + 3_600_000, life.toMs],
    ];
    for (const [fromMs, toMs] of cuts) assert.deepEqual(await ask(fromMs, toMs), { ...all, from: fromMs });
    const evening = await ask(life.fromMs, midnightMs + dayMs);
    const morning = await ask(midnightMs + dayMs, life.toMs);
    assert.equal(evening.cpu + morning.cpu, all.cpu);
    assert.deepEqual([evening.complete, morning.complete], [false, true]);

    nowMs += 100 * dayMs;
    await clickHouse.exec("TRUNCATE TABLE usage_window");
    assert.deepEqual(await ask(...days), { ...all, from: days[0] });
    assert.deepEqual(await ask(life.fromMs, life.toMs), { ...all, from: life.fromMs - 30 * minuteMs }); // whole hours
    nowMs += 301 * dayMs;
    await clickHouse.exec("TRUNCATE TABLE usage_1h");
    assert.deepEqual(await ask(life.fromMs, life.toMs), { ...all, from: days[0] }); // whole days
  });

  test("price books are put once, in time, and never changed", async () => {
    const nowMs = midnightMs;
    await using pipeline = await startPipeline({ clickHouse, nowMs: () => nowMs });
    const operator = pipeline.client("operator");
    const priceBook = {
      priceBookId: newId("book"),
      currency: "USD",
      exponent: 6,
      effectiveFromMs: BigInt(nowMs + 365 * dayMs),
      prices: [{ meter: "cpu_time", amount: "0.00003", perQuantity: "1000000" }],
    };
    const put = await operator.putPriceBook({ priceBook });
    assert.match(put.hash, /^[0-9a-f]{64}$/);
    assert.deepEqual(await operator.putPriceBook({ priceBook: { ...priceBook, hash: "ignored" } }), put);
    const refusals: readonly (readonly [
      Partial<Omit<typeof priceBook, "priceBookId"> & { priceBookId: string }>,
      ErrorReason,
    ])[] = [
      [{ exponent: 5 }, "PRICE_BOOK_EXISTS"],
      [{ priceBookId: newId("book") }, "PRICE_BOOK_EXISTS"], // takes effect at the same instant
      [{ priceBookId: newId("book"), effectiveFromMs: BigInt(nowMs) }, "PRICE_BOOK_INVALID"],
      [{ priceBookId: newId("book"), prices: [{ meter: "gpu", amount: "1", perQuantity: "1" }] }, "PRICE_BOOK_INVALID"],
      [{ priceBookId: "book_x" }, "INVALID_REQUEST"],
      [{ currency: "usd" }, "INVALID_REQUEST"],
      [{ prices: [{ meter: "cpu_time", amount: "1e9", perQuantity: "1" }] }, "INVALID_REQUEST"],
      [{ prices: [] }, "INVALID_REQUEST"],
    ];
    for (const [change, reason] of refusals) {
      await assert.rejects(operator.putPriceBook({ priceBook: { ...priceBook, ...change } }), because(reason));
    }
    const { priceBooks } = await pipeline.client("gatewayd", newId("tenant")).listPriceBooks({});
    assert.deepEqual(
      priceBooks.map(({ priceBookId }) => priceBookId),
      [put.priceBookId, defaultPriceBook.id],
    );
    assert.deepEqual(priceBooks[0], put);
  });
});
