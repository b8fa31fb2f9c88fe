import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { seriesLife } from "../testing/arbitrary-windows.ts";
import { foldUnits, readWindows, unitOf } from "../testing/window-model.ts";
import { defaultPriceBook } from "./price-book.ts";
import { foldSeries, type UsageUnit } from "./usage-unit.ts";
import { counterNames, windowStartOf } from "./usage-window.ts";

const life = seriesLife(Date.UTC(2026, 10, 23)).map((windows) => readWindows(windows).map((window) => unitOf(window)));
const lifeCut = life.chain((units) =>
  fc.tuple(fc.constant(units), fc.uniqueArray(fc.nat({ max: units.length }), { maxLength: 4 })),
);

function cut(units: readonly UsageUnit[], at: readonly number[]): UsageUnit[] {
  const places = [0, ...at.toSorted((a, b) => a - b), units.length];
  const pieces = places.slice(1).map((to, index) => units.slice(places[index], to));
  return pieces.filter((piece) => piece.length > 0).map(foldUnits);
}

test("a series used the same however it is cut into stretches, in whatever order they come", () => {
  fc.assert(
    fc.property(lifeCut, fc.infiniteStream(fc.nat()), ([units, at], random) => {
      const whole = foldSeries(units, 0);
      const pieces = cut(units, at).toSorted(() => (Number(random.next().value) % 2 === 0 ? 1 : -1));
      assert.deepEqual(foldSeries(pieces, 0), whole);
    }),
  );
});

test("without faults, usage is the last counters minus the first", () => {
  const faultless = seriesLife(0, { faults: false }).map((windows) => readWindows(windows));
  fc.assert(
    fc.property(faultless, (windows) => {
      const used = foldSeries(
        windows.map((window) => unitOf(window)),
        0,
      ).byBook.get(defaultPriceBook.id);
      for (const name of counterNames) {
        assert.equal(used?.[name], (windows.at(-1)?.closing[name] ?? 0n) - (windows[0]?.opening[name] ?? 0n));
      }
    }),
  );
});

test("a pair of counters that goes backwards counts nothing; gauges count all the same", () => {
  fc.assert(
    fc.property(seriesLife(0), (messages) => {
      for (const window of readWindows(messages)) {
        const { quantities } = unitOf(window);
        if (window.counterFault) for (const name of counterNames) assert.equal(quantities[name], 0n);
        assert.equal(quantities.memoryByteMs, window.memoryAllocated?.byteMs);
      }
    }),
  );
});

test("a series is complete when it has ended and none of its windows is missing", () => {
  fc.assert(
    fc.property(life, fc.nat(), (units, place) => {
      const ended = units.at(-1)?.final === true;
      assert.equal(foldSeries(units, 0).complete, ended);
      const missing = place % units.length;
      const rest = units.filter((_, index) => index !== missing);
      if (rest.length > 0) assert.equal(foldSeries(rest, 0).complete, false);
    }),
  );
});

test("a series that began before the period is complete from the period's first minute", () => {
  fc.assert(
    fc.property(life, (units) => {
      fc.pre(units.length > 2 && units.at(-1)?.final === true);
      const rest = units.slice(1);
      const fromMs = windowStartOf(rest[0]?.coveredFromMs ?? 0);
      assert.equal(foldSeries(rest, fromMs).complete, true);
      assert.equal(foldSeries(rest.slice(1), fromMs).complete, false);
    }),
  );
});

test("a revised window is continued by the successor of the revision that it replaced", () => {
  fc.assert(
    fc.property(life, fc.nat(), (units, place) => {
      fc.pre(units.length > 1 && units.at(-1)?.final === true);
      const changed = units.map((unit, index) =>
        index === place % units.length ? { ...unit, revision: 1, hash: "f".repeat(64) } : unit,
      );
      assert.equal(foldSeries(changed, 0).complete, true);
      const forged = units.map((unit, index) =>
        index === place % (units.length - 1) ? { ...unit, hash: "f".repeat(64) } : unit,
      );
      assert.equal(foldSeries(forged, 0).complete, false);
    }),
  );
});
