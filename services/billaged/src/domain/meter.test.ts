import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { toBinary } from "@bufbuild/protobuf";
import { GapCause, type WindowBatch, WindowBatchSchema } from "@unkey/api/metering";
import { type Fact, Meter } from "./meter.ts";
import {
  addUp,
  noValues,
  type TestColumn,
  type TestValues,
  testFrame,
  testSample,
  testSeries,
  windowsOf,
} from "./testing.ts";

const minute = 60_000;
const t0 = 29_000_000 * minute;
const memory = 512 * 1024 * 1024;
const series = testSeries("vm_a");
const at = (tick: number, fields: Partial<TestValues> = {}): TestValues => ({
  ...noValues,
  cpu: tick * 50,
  memory,
  ...fields,
});

function started(atMs: number, values = at(0)): Fact {
  return { kind: "started", series, baseline: testSample(0, atMs, values) };
}
function stopped(baselineAtMs: number, atMs: number, values: TestValues): Fact {
  return { kind: "stopped", series, baseline: testSample(0, baselineAtMs, at(0)), final: testSample(0, atMs, values) };
}
function frame(seq: number, atMs: number, columns: TestColumn[]): Fact {
  return { kind: "frame", frame: testFrame(seq, atMs, columns) };
}
/** Ticks `from` to `to` of a VM that began at `baselineAtMs`, one frame each. */
function ticks(baselineAtMs: number, from: number, to: number, values = at): Fact[] {
  return Array.from({ length: to - from + 1 }, (_, i) => {
    const tick = from + i;
    return frame(tick, baselineAtMs + tick * 100, [{ vmId: "vm_a", seq: tick, values: values(tick) }]);
  });
}
function applyAll(meter: Meter, facts: readonly Fact[]): WindowBatch[] {
  return facts.flatMap((fact) => meter.apply(fact));
}

suite("the meter", () => {
  test("a VM that lives across minutes is covered without a seam", () => {
    const meter = new Meter(7n);
    const begin = t0 + 10_000;
    const end = begin + 200_000;
    const batches = applyAll(meter, [
      started(begin),
      ...ticks(begin, 1, 1999),
      stopped(begin, end, at(2000, { netOut: 77 })),
    ]);
    const windows = windowsOf(batches, "vm_a");
    assert.deepEqual(
      windows.map((w) => [Number(w.windowStartMs) - t0, Number(w.coveredFromMs) - t0, Number(w.coveredToMs) - t0]),
      [
        [0, 10_000, 60_000],
        [60_000, 60_000, 120_000],
        [120_000, 120_000, 180_000],
        [180_000, 180_000, 210_000],
      ],
    );
    const totals = addUp(windows);
    assert.equal(totals.cpu, 100_000n);
    assert.equal(totals.netOut, 77n);
    assert.equal(totals.memoryByteMs, BigInt(memory) * 200_000n);
    assert.deepEqual([totals.expected, totals.seen], [1999, 1999]);
    assert.deepEqual(
      windows.map((w) => [w.final, w.gaps.length, w.counterFault]),
      [
        [false, 0, false],
        [false, 0, false],
        [false, 0, false],
        [true, 0, false],
      ],
    );
    assert.equal(windows[0]?.memoryAllocated?.minBytes, BigInt(memory));
    assert.equal(meter.openSeries, 0);
  });

  test("a final reading publishes at once, whatever the minute", () => {
    const meter = new Meter(1n);
    applyAll(meter, [started(t0), ...ticks(t0, 1, 30)]);
    const [batch, ...more] = meter.apply(stopped(t0, t0 + 3_050, at(31)));
    assert.equal(more.length, 0);
    assert.deepEqual(
      batch?.windows.map((w) => [w.final, w.samplesExpected, w.samplesSeen, Number(w.coveredToMs) - t0]),
      [[true, 30, 30, 3_050]],
    );
  });

  test("a VM without a single sample is billed from its baseline to its end", () => {
    const windows = windowsOf(applyAll(new Meter(1n), [stopped(t0, t0 + 150_000, at(1500))]), "vm_a");
    const totals = addUp(windows);
    assert.equal(windows.length, 3);
    assert.equal(totals.cpu, 75_000n);
    assert.equal(totals.memoryByteMs, BigInt(memory) * 150_000n);
    assert.deepEqual([totals.expected, totals.seen], [1499, 0]);
    for (const window of windows) {
      assert.deepEqual(
        window.gaps.map((gap) => [gap.fromMs, gap.toMs, gap.cause, gap.countersBridged]),
        [[window.coveredFromMs, window.coveredToMs, GapCause.AGENT_DOWN, true]],
      );
    }
  });

  test("an outage inside an incarnation is a gap that the counters bridge", () => {
    const meter = new Meter(1n);
    const later = ticks(t0, 4_000, 4_300); // almost six minutes are missing
    const batches = applyAll(meter, [
      started(t0),
      ...ticks(t0, 1, 450),
      ...later,
      stopped(t0, t0 + 430_050, at(4_301)),
    ]);
    const windows = windowsOf(batches, "vm_a");
    const totals = addUp(windows);
    assert.equal(totals.cpu, 4_301n * 50n);
    assert.equal(totals.memoryByteMs, BigInt(memory) * 430_050n);
    assert.equal(windows.length, 8);
    assert.equal(totals.seen, 450 + 301);
    const gaps = windows.flatMap((w) => w.gaps);
    assert.equal(Number(gaps[0]?.fromMs), t0 + 45_000);
    assert.equal(Number(gaps.at(-1)?.toMs), t0 + 400_000);
    assert.ok(gaps.every((gap) => gap.cause === GapCause.AGENT_DOWN && gap.countersBridged));
    assert.equal(
      gaps.reduce((sum, gap) => sum + gap.toMs - gap.fromMs, 0n),
      355_000n,
    );
  });

  test("silence closes a window with an open end, and what nobody proves is not billed", () => {
    const meter = new Meter(1n);
    applyAll(meter, [started(t0), ...ticks(t0, 1, 300)]);
    const early = meter.apply({ kind: "tick", hostId: "host_1", atMs: t0 + 100_000 });
    assert.deepEqual(
      early.map((batch) => batch.windows.length),
      [0],
    );
    const [batch] = meter.apply({ kind: "tick", hostId: "host_1", atMs: t0 + 183_000 });
    const [window] = batch?.windows ?? [];
    assert.equal(window?.coveredToMs, BigInt(t0 + 60_000));
    assert.equal(window?.memoryAllocated?.byteMs, (BigInt(memory) * 30_000n).toString());
    assert.deepEqual(
      window?.gaps.map((gap) => [Number(gap.fromMs) - t0, Number(gap.toMs) - t0, gap.countersBridged]),
      [[30_000, 60_000, false]],
    );
    // It died unnoticed in the time that is closed: its counters come with a last window of no length.
    const batches = meter.apply(stopped(t0, t0 + 40_000, at(400)));
    assert.ok(window);
    const windows = [window, ...windowsOf(batches, "vm_a")];
    assert.equal(addUp(windows).cpu, 400n * 50n);
    assert.deepEqual(windows.at(-1)?.coveredFromMs, windows.at(-1)?.coveredToMs);
    assert.equal(windows.at(-1)?.final, true);
  });

  test("what cannot be read is a gap, not zero", () => {
    const meter = new Meter(1n);
    const blind = Array.from({ length: 50 }, (_, i) =>
      frame(201 + i, t0 + (201 + i) * 100, [{ vmId: "vm_a", seq: 201 + i }]),
    );
    const batches = applyAll(meter, [
      started(t0),
      ...ticks(t0, 1, 200),
      ...blind,
      ...ticks(t0, 251, 400),
      stopped(t0, t0 + 40_050, at(401)),
    ]);
    const [window] = windowsOf(batches, "vm_a");
    assert.equal(addUp([window!]).cpu, 401n * 50n);
    assert.equal(window?.samplesSeen, 350);
    assert.deepEqual(
      window?.gaps.map((gap) => [Number(gap.fromMs) - t0, Number(gap.toMs) - t0, gap.cause, gap.countersBridged]),
      [[20_000, 25_100, GapCause.READ_ERROR, true]],
    );
  });

  test("a VM that the host no longer mentions has a gap of unknown cause", () => {
    const meter = new Meter(1n);
    const others = Array.from({ length: 50 }, (_, i) => frame(201 + i, t0 + (201 + i) * 100, []));
    const batches = applyAll(meter, [
      started(t0),
      ...ticks(t0, 1, 200),
      ...others,
      ...ticks(t0, 251, 260),
      stopped(t0, t0 + 26_050, at(261)),
    ]);
    assert.equal(windowsOf(batches, "vm_a")[0]?.gaps[0]?.cause, GapCause.UNSPECIFIED);
  });

  test("a gauge counts with the lower of both ends across a gap", () => {
    const meter = new Meter(1n);
    const facts = [
      started(t0, at(0, { disk: 1_000 })),
      ...ticks(t0, 1, 10, (tick) => at(tick, { disk: 5_000 })),
      ...ticks(t0, 110, 120, (tick) => at(tick, { disk: 3_000 })),
      stopped(t0, t0 + 12_000, at(120, { disk: 3_000 })),
    ];
    const [window] = windowsOf(applyAll(meter, facts), "vm_a");
    const expected = 1_000 * 100 + 5_000 * 900 + 3_000 * 10_000 + 3_000 * 1_000;
    assert.equal(window?.diskAllocated?.byteMs, String(expected));
    assert.deepEqual([window?.diskAllocated?.minBytes, window?.diskAllocated?.maxBytes], [1_000n, 5_000n]);
  });

  test("a counter that decreases flags its window", () => {
    const meter = new Meter(1n);
    const facts = [
      started(t0),
      ...ticks(t0, 1, 610, (tick) => at(tick, { netIn: tick === 300 ? 10 : tick * 7 })),
      stopped(t0, t0 + 61_050, at(611, { netIn: 611 * 7 })),
    ];
    const windows = windowsOf(applyAll(meter, facts), "vm_a");
    assert.deepEqual(
      windows.map((w) => w.counterFault),
      [true, false],
    );
    assert.equal(addUp(windows).netIn, 611n * 7n);
  });

  test("announcing and ending again changes nothing", () => {
    const meter = new Meter(1n);
    const facts = [started(t0), ...ticks(t0, 1, 100), started(t0), ...ticks(t0, 50, 120)];
    applyAll(meter, facts);
    const end = stopped(t0, t0 + 12_050, at(121));
    assert.equal(windowsOf(meter.apply(end), "vm_a").length, 1);
    assert.deepEqual(applyAll(meter, [end, started(t0), ...ticks(t0, 121, 130), end]), []);
  });

  test("each closed minute is a sign of life, with windows or without", () => {
    const meter = new Meter(1n);
    const facts = Array.from({ length: 20 }, (_, i) => frame(i + 1, t0 + i * 10_000, []));
    const batches = applyAll(meter, facts);
    assert.deepEqual(
      batches.map((batch) => [Number(batch.minuteAtMs) - t0, Number(batch.batchSeq), batch.windows.length]),
      [
        [0, 1, 0],
        [60_000, 2, 0],
        [120_000, 3, 0],
      ],
    );
    assert.equal(new Set(batches.map((batch) => batch.batchId)).size, 3);
  });

  test("samples of a VM that nobody announced are counted, not billed", () => {
    const meter = new Meter(1n);
    assert.deepEqual(windowsOf(applyAll(meter, ticks(t0, 1, 700)), "vm_a"), []);
    assert.equal(meter.counts.unannounced, 700);
  });

  test("incarnations are never mixed", () => {
    const meter = new Meter(1n);
    const second = testSeries("vm_a", { incarnation: 2 });
    const facts: Fact[] = [
      started(t0, at(0)),
      ...ticks(t0, 1, 10),
      { kind: "started", series: second, baseline: testSample(0, t0 + 1_050, at(0)) },
      frame(11, t0 + 1_100, [{ vmId: "vm_a", incarnation: 2, seq: 1, values: at(1) }]),
      stopped(t0, t0 + 1_060, at(11)),
      {
        kind: "stopped",
        series: second,
        baseline: testSample(0, t0 + 1_050, at(0)),
        final: testSample(0, t0 + 1_200, at(2)),
      },
    ];
    const batches = applyAll(meter, facts);
    assert.equal(addUp(windowsOf(batches, "vm_a", 1)).cpu, 550n);
    assert.equal(addUp(windowsOf(batches, "vm_a", 2)).cpu, 100n);
  });

  test("restored from its snapshot it goes on to the same bytes", () => {
    const facts = [
      started(t0, at(0, { resident: 5 })),
      ...ticks(t0, 1, 700, (tick) => at(tick, { resident: 1000 + (tick % 7) })),
      frame(701, t0 + 70_100, [{ vmId: "vm_a", seq: 701 }]),
      ...ticks(t0, 702, 1300),
      stopped(t0, t0 + 130_050, at(1301)),
    ];
    const whole = applyAll(new Meter(9n), facts);
    for (const cut of [1, 300, 620, 702, 1299]) {
      const first = new Meter(9n);
      const before = applyAll(first, facts.slice(0, cut));
      const second = Meter.restore(JSON.parse(JSON.stringify(first.snapshot())));
      const after = applyAll(second, facts.slice(cut));
      const bytes = (batches: WindowBatch[]) =>
        batches.map((batch) => Buffer.from(toBinary(WindowBatchSchema, batch)).toString("hex"));
      assert.deepEqual(bytes([...before, ...after]), bytes(whole), `cut at ${cut}`);
    }
  });

  test("shows the last ten closed windows and the open one", () => {
    const meter = new Meter(1n);
    applyAll(meter, [started(t0), ...ticks(t0, 1, 12 * 600 + 100)]);
    const { closed, open } = meter.windows("vm_a");
    assert.equal(closed.length, 10);
    assert.equal(Number(closed[0]?.windowStartMs), t0 + 2 * minute);
    assert.deepEqual(
      open.map((w) => [Number(w.windowStartMs) - t0, w.samplesSeen, w.final]),
      [[12 * minute, 101, false]],
    );
    assert.deepEqual(meter.windows("vm_b"), { closed: [], open: [] });
  });
});

test("a minute of nothing but gaps keeps a bounded list of them", () => {
  const meter = new Meter(1n);
  // 1,001 ms between readings is a gap each time; the first and the last are cut at the minute's ends.
  const facts = Array.from({ length: 125 }, (_, i) =>
    frame(i + 1, t0 + 500 + (i + 1) * 1_001, [{ vmId: "vm_a", seq: i + 1, values: at(i) }]),
  );
  const batches = applyAll(meter, [started(t0 + 500), ...facts, stopped(t0 + 500, t0 + 126_000, at(125))]);
  for (const window of windowsOf(batches, "vm_a")) {
    assert.ok(window.gaps.length <= 60);
    for (const gap of window.gaps) {
      assert.ok(gap.fromMs >= window.coveredFromMs && gap.fromMs < gap.toMs && gap.toMs <= window.coveredToMs);
    }
  }
  assert.equal(addUp(windowsOf(batches, "vm_a")).cpu, 125n * 50n);
});
