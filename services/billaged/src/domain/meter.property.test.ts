import assert from "node:assert/strict";
import { test } from "node:test";
import { toBinary } from "@bufbuild/protobuf";
import { type WindowBatch, WindowBatchSchema } from "@unkey/api/metering";
import * as fc from "fast-check";
import { type Fact, Meter } from "./meter.ts";
import { addUp, noValues, type TestValues, testFrame, testSample, testSeries, windowsOf } from "./testing.ts";

const t0 = 29_000_000 * 60_000;
const memory = 3 * 1024 ** 3;

/** A life: when it began within its minute, how long it was, how its counters grew, and which ticks went missing. */
const anyLife = fc.record({
  offsetMs: fc.integer({ min: 0, max: 59_999 }),
  lengthTicks: fc.integer({ min: 1, max: 2_500 }),
  tailMs: fc.integer({ min: 1, max: 100 }),
  step: fc.integer({ min: 0, max: 5_000 }),
  lost: fc.array(fc.tuple(fc.nat(2_500), fc.nat(1_300)), { maxLength: 4 }),
});
type Life = typeof anyLife extends fc.Arbitrary<infer T> ? T : never;

function valuesAt(life: Life, tick: number): TestValues {
  const n = tick * life.step;
  return { ...noValues, cpu: n, read: 2 * n, write: 3 * n, netIn: 5 * n, netOut: 7 * n, memory, resident: n, disk: n };
}

function factsOf(life: Life, vmId = "vm_a"): { facts: Fact[]; begin: number; end: number } {
  const begin = t0 + life.offsetMs;
  const end = begin + life.lengthTicks * 100 + life.tailMs;
  const series = testSeries(vmId);
  const baseline = testSample(0, begin, valuesAt(life, 0));
  const facts: Fact[] = [{ kind: "started", series, baseline }];
  for (let tick = 1; tick <= life.lengthTicks; tick++) {
    if (life.lost.some(([from, length]) => tick >= from && tick < from + length)) continue;
    const frame = testFrame(tick, begin + tick * 100, [{ vmId, seq: tick, values: valuesAt(life, tick) }]);
    facts.push({ kind: "frame", frame });
  }
  facts.push({ kind: "stopped", series, baseline, final: testSample(0, end, valuesAt(life, life.lengthTicks + 1)) });
  return { facts, begin, end };
}

function bytesOf(batches: readonly WindowBatch[]): string[] {
  return batches.map((batch) => Buffer.from(toBinary(WindowBatchSchema, batch)).toString("hex"));
}

function run(facts: readonly Fact[]): WindowBatch[] {
  const meter = new Meter(1n);
  return facts.flatMap((fact) => meter.apply(fact));
}

test("whatever is lost, the sums over the windows are exactly final minus baseline", () => {
  fc.assert(
    fc.property(anyLife, (life) => {
      const { facts, begin, end } = factsOf(life);
      const windows = windowsOf(run(facts), "vm_a");
      const totals = addUp(windows);
      const n = BigInt((life.lengthTicks + 1) * life.step);
      assert.deepEqual(
        [totals.cpu, totals.read, totals.write, totals.netIn, totals.netOut],
        [n, 2n * n, 3n * n, 5n * n, 7n * n],
      );
      assert.equal(windows[0]?.coveredFromMs, BigInt(begin));
      assert.equal(windows.at(-1)?.coveredToMs, BigInt(end));
      assert.equal(totals.memoryByteMs, BigInt(memory) * BigInt(end - begin));
      assert.equal(totals.expected, Math.ceil(end / 100) - Math.floor(begin / 100) - 1);
      assert.equal(totals.seen, facts.length - 2);
      assert.ok(windows.every((window) => !window.counterFault && window.final === (window === windows.at(-1))));
    }),
    { numRuns: 60 },
  );
});

test("repeats and reorders within the grace period leave every byte as it was", () => {
  const anyNoise = fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 15 })), { maxLength: 200 });
  fc.assert(
    fc.property(anyLife, anyNoise, (life, noise) => {
      // Without losses: next to a hole, moving a frame by a few places moves it by minutes.
      const { facts } = factsOf({ ...life, lost: [] });
      const noisy = facts.slice(1, -1);
      const moved = new Set<Fact>();
      for (const [place, distance] of noise) {
        const from = noisy.length === 0 ? 0 : place % noisy.length;
        const fact = noisy[from];
        if (fact === undefined) continue;
        if (distance % 3 === 0)
          noisy.splice(from + distance, 0, fact); // a repeat, a little later
        else if (!moved.has(fact)) {
          // once each, so that no frame strays further than the grace period
          noisy.splice(from, 1);
          noisy.splice(Math.max(0, from - distance), 0, fact);
        }
        moved.add(fact);
      }
      const noisyRun = run([...facts.slice(0, 1), ...noisy, ...facts.slice(-1)]);
      assert.deepEqual(bytesOf(noisyRun), bytesOf(run(facts)));
    }),
    { numRuns: 40 },
  );
});

test("several VMs on a host do not touch each other's windows", () => {
  fc.assert(
    fc.property(fc.array(anyLife, { minLength: 2, maxLength: 4 }), (lives) => {
      const all = lives.map((life, i) => factsOf(life, `vm_${i}`));
      const events = all.flatMap(({ facts, begin, end }) =>
        facts.map((fact) => ({
          fact,
          atMs: fact.kind === "frame" ? Number(fact.frame.atMs) : fact.kind === "stopped" ? end : begin,
        })),
      );
      events.sort((a, b) => a.atMs - b.atMs);
      let frameSeq = 0;
      const numbered = events.map(({ fact }): Fact => {
        if (fact.kind !== "frame") return fact;
        frameSeq += 1;
        return { kind: "frame", frame: { ...fact.frame, frameSeq: BigInt(frameSeq) } };
      });
      const batches = run(numbered);
      lives.forEach((life, i) => {
        const totals = addUp(windowsOf(batches, `vm_${i}`));
        assert.equal(totals.netOut, BigInt(7 * (life.lengthTicks + 1) * life.step));
      });
    }),
    { numRuns: 25 },
  );
});
