import assert from "node:assert/strict";
import { test } from "node:test";
import { testSeries, testWindows } from "../testing/simulated-host.ts";
import { readWindows } from "../testing/window-model.ts";
import { judgeWindows, type SeriesHead } from "./check-window.ts";
import { seriesName, type UsageWindow } from "./usage-window.ts";

const nowMs = Date.UTC(2026, 10, 23, 13, 30);
const series = testSeries();
const messages = testWindows(series, { fromMs: nowMs - 150_000, toMs: nowMs - 10_000 }, [
  { cpuTimeUs: 10n, memoryBytes: 100n },
  { cpuTimeUs: 20n, memoryBytes: 100n, gap: { fromMs: 0, toMs: 5_000 } },
  { cpuTimeUs: 30n, memoryBytes: 100n },
]);
const windows = readWindows(messages);
const [first, second, third] = windows as [UsageWindow, UsageWindow, UsageWindow];

function whyOf(window: UsageWindow, after: readonly UsageWindow[] = []): string | undefined {
  return judge([window], after).setAside[0]?.why;
}

function judge(batch: readonly UsageWindow[], after: readonly UsageWindow[] = []) {
  const known = judgeWindows(after, new Map(), { hostId: series.hostId, nowMs });
  assert.deepEqual(known.setAside, []);
  return judgeWindows(batch, headsOf(known.heads), { hostId: series.hostId, nowMs });
}

function headsOf(heads: readonly SeriesHead[]): Map<string, SeriesHead> {
  return new Map(heads.map((head) => [seriesName(head), head]));
}

test("windows that fit are taken, in any order and again", () => {
  assert.equal(windows.length, 3);
  for (const order of [windows, windows.toReversed(), [second, first, third], [...windows, ...windows]]) {
    const { setAside, heads } = judge(order);
    assert.deepEqual(setAside, []);
    assert.deepEqual(
      heads.map((head) => [head.startMs, head.final]),
      [[third.startMs, true]],
    );
  }
  assert.equal(whyOf(second, [first]), undefined);
  assert.equal(whyOf(third, [first]), undefined); // its predecessor may still be on the way
  assert.equal(whyOf(first, [third]), undefined);
});

test("a window that cannot be true is set aside, and only that one", () => {
  const cases: readonly (readonly [Partial<UsageWindow>, RegExp])[] = [
    [{ hostId: testSeries().hostId }, /another host/],
    [{ tenantId: "tenant_x" }, /tenant_id/],
    [{ appId: "'; DROP" }, /app_id/],
    [{ vmId: "" }, /vm_id/],
    [{ deploymentId: "dep_x" }, /deployment_id/],
    [{ incarnation: 0 }, /incarnation/],
    [{ startMs: second.startMs + 1 }, /aligned/],
    [{ startMs: -60_000 }, /aligned/],
    [{ startMs: 2 ** 62 }, /aligned/],
    [{ startMs: nowMs + 6 * 60_000 }, /future/],
    [{ startMs: nowMs - 95 * 86_400_000 }, /older/],
    [{ coveredFromMs: second.startMs - 1 }, /inside its minute/],
    [{ coveredToMs: second.startMs + 60_001 }, /inside its minute/],
    [{ coveredToMs: second.coveredFromMs - 1 }, /inside its minute/],
    [{ closing: { ...second.closing, cpuTimeUs: (second.opening.cpuTimeUs ?? 0n) - 1n } }, /cpuTimeUs goes backwards/],
    [{ closing: {} }, /closing cpuTimeUs is missing/],
    [{ memoryAllocated: { byteMs: 6_000_001n, minBytes: 100n, maxBytes: 100n } }, /memory_allocated/],
    [{ memoryResident: { byteMs: -1n, minBytes: 0n, maxBytes: 1n } }, /memory_resident/],
    [{ diskAllocated: { byteMs: 0n, minBytes: 2n, maxBytes: 1n } }, /disk_allocated/],
    [
      { gaps: [{ fromMs: second.coveredFromMs - 1, toMs: second.coveredToMs, cause: 0, countersBridged: true }] },
      /gap/,
    ],
    [
      { gaps: Array.from({ length: 61 }, () => second.gaps[0]).filter((gap) => gap !== undefined) },
      /more than 60 gaps/,
    ],
    [{ previousHash: "abcd" }, /previous_hash/],
  ];
  const innocent = readWindows(
    testWindows(testSeries({ hostId: series.hostId }), { fromMs: nowMs - 60_000, toMs: nowMs }),
  );
  for (const [change, why] of cases) {
    const { setAside } = judge([...innocent, { ...second, ...change }]);
    assert.deepEqual(
      setAside.map(({ index }) => index),
      [innocent.length],
    );
    assert.match(setAside[0]?.why ?? "", why);
  }
});

test("a start up to five minutes ahead is a clock that is ahead", () => {
  const ahead = (ms: number) => readWindows(testWindows(series, { fromMs: nowMs + ms, toMs: nowMs + ms + 1000 }));
  assert.deepEqual(judge(ahead(5 * 60_000)).setAside, []);
  assert.match(judge(ahead(6 * 60_000)).setAside[0]?.why ?? "", /future/);
});

test("counters may go backwards where the window says so", () => {
  assert.equal(whyOf({ ...second, counterFault: true, closing: { ...second.closing, cpuTimeUs: 0n } }), undefined);
});

test("a window has to fit the one before it", () => {
  const cases: readonly (readonly [Partial<UsageWindow>, RegExp])[] = [
    [{ tenantId: testSeries().tenantId }, /another tenant or app/],
    [{ appId: testSeries().appId }, /another tenant or app/],
    [{ opening: { ...second.opening, cpuTimeUs: 9n } }, /closing counters before it/],
    [{ opening: { ...second.opening, cpuTimeUs: 11n } }, /closing counters before it/],
    [
      { coveredFromMs: second.coveredFromMs + 1, memoryAllocated: undefined, gaps: [] },
      /where the window before it ends/,
    ],
    [{ previousHash: "" }, /first of a series/],
  ];
  for (const [change, why] of cases) assert.match(whyOf({ ...second, ...change }, [first]) ?? "", why);
  const [after] = readWindows(testWindows(series, { fromMs: third.startMs + 60_000, toMs: third.startMs + 61_000 }));
  assert.ok(after);
  assert.match(whyOf(after, windows) ?? "", /ended before/);
});

test("one minute and revision has one content; a higher revision replaces it", () => {
  const other = { ...third, hash: "0".repeat(64) };
  assert.match(whyOf(other, windows) ?? "", /minute and revision/);
  assert.equal(whyOf({ ...other, revision: 1 }, windows), undefined);
  assert.equal(judge([{ ...other, revision: 1 }], windows).heads[0]?.revision, 1);
  assert.deepEqual(judge([third], [...windows, { ...other, revision: 1 }]).heads, []);
});

test("a log that replaces a lost one begins its chain anew", () => {
  const again = readWindows(messages, 2);
  assert.deepEqual(judge(again, windows).setAside, []);
  assert.equal(judge(again, windows).heads[0]?.logEpoch, 2n);
  const merged = readWindows(testWindows(series, { fromMs: nowMs - 150_000, toMs: nowMs, running: true }), 2);
  assert.deepEqual(judge(merged, [first, second]).setAside, []);
});
