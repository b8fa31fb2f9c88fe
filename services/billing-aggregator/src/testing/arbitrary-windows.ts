import type { Series, UsageWindow } from "@unkey/api/metering";
import * as fc from "fast-check";
import { type Minute, revised, testSeries, testWindows } from "./simulated-host.ts";

const count = fc.bigInt({ min: 0n, max: 2n ** 45n });

/** What a VM may do in a minute. */
const minute: fc.Arbitrary<Minute> = fc.record({
  cpuTimeUs: count,
  diskReadBytes: count,
  diskWriteBytes: count,
  netInBytes: count,
  netOutBytes: count,
  memoryBytes: fc.bigInt({ min: 0n, max: 2n ** 50n }),
  residentBytes: fc.bigInt({ min: 0n, max: 2n ** 50n }),
  diskBytes: fc.bigInt({ min: 0n, max: 2n ** 50n }),
  samplesMissing: fc.nat({ max: 600 }),
  gap: fc.constantFrom(undefined, { fromMs: 0, toMs: 2_000 }, { fromMs: 30_000, toMs: 60_000 }),
});

/** As `minute`, and now and then its counters go backwards. */
const oddMinute: fc.Arbitrary<Minute> = fc
  .tuple(minute, fc.constantFrom(false, false, false, false, true))
  .map(([even, counterFault]) => ({ ...even, counterFault }));

/** The whole life of a series that begins within ten minutes after `fromMs`. */
export function seriesLife(
  fromMs: number,
  options: { readonly fields?: Partial<Series>; readonly maxMinutes?: number; readonly faults?: boolean } = {},
): fc.Arbitrary<UsageWindow[]> {
  const { fields = {}, maxMinutes = 8, faults = true } = options;
  return fc
    .record({
      minutes: fc.array(faults ? oddMinute : minute, { minLength: 1, maxLength: maxMinutes }),
      beginMs: fc.nat({ max: 600_000 }),
      spareMs: fc.integer({ min: 1, max: 60_000 }),
      running: fc.constantFrom(false, false, true),
    })
    .map(({ minutes, beginMs, spareMs, running }) => {
      const begin = fromMs + beginMs;
      const toMs = begin + (minutes.length - 1) * 60_000 + spareMs;
      return testWindows(testSeries(fields), { fromMs: begin, toMs, running }, minutes);
    });
}

/** Some of the windows once more, as late data changed them. */
export function revisionsOf(windows: readonly UsageWindow[]): fc.Arbitrary<UsageWindow[]> {
  return fc.subarray([...windows], { maxLength: 3 }).map((some) => some.map((window) => revised(window)));
}
