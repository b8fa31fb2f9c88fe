import assert from "node:assert/strict";
import { suite, test } from "node:test";
import * as fc from "fast-check";
import { DiskFault, MemoryLogFolder, PowerLoss } from "./adapters/memory-log-folder.ts";
import type { LogPosition } from "./ports.ts";
import { encodeRecord, readRecords, segmentName } from "./segment.ts";
import { type LogDamage, SegmentedLog } from "./segmented-log.ts";

const segmentBytes = 300;

interface Reopened {
  readonly log: SegmentedLog;
  readonly read: string[];
  readonly ends: LogPosition[];
  readonly damage: LogDamage[];
}

async function open(folder: MemoryLogFolder, from?: LogPosition): Promise<Reopened> {
  const read: string[] = [];
  const ends: LogPosition[] = [];
  const { log, damage } = await SegmentedLog.open({ folder, segmentBytes }, from, (payload, end) => {
    read.push(Buffer.from(payload).toString());
    ends.push(end);
  });
  return { log, read, ends, damage };
}

async function appendAll(log: SegmentedLog, texts: readonly string[]): Promise<LogPosition[]> {
  const ends: LogPosition[] = [];
  for (const text of texts) await log.append(Buffer.from(text), (end) => ends.push(end));
  return ends;
}

const numbered = (count: number, from = 0) => Array.from({ length: count }, (_, i) => `record ${from + i}`);

suite("the log", () => {
  test("reads back what was appended, in order, over many segments and openings", async () => {
    const folder = new MemoryLogFolder();
    const first = await open(folder);
    await appendAll(first.log, numbered(40));
    await first.log[Symbol.asyncDispose]();
    const second = await open(folder);
    assert.deepEqual(second.read, numbered(40));
    await appendAll(second.log, numbered(5, 40));
    const third = await open(folder.afterPowerLoss(0, false));
    assert.deepEqual(third.read, numbered(45));
    assert.deepEqual(third.damage, []);
    assert.ok((await folder.list()).length > 3);
  });

  test("shares one sync among appends that arrive together, and calls back in order", async () => {
    const folder = new MemoryLogFolder();
    const { log } = await open(folder);
    const before = folder.operations;
    const seen: number[] = [];
    await Promise.all(numbered(10).map((text, i) => log.append(Buffer.from(text), () => seen.push(i))));
    assert.equal(folder.operations - before, 2);
    assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  });

  test("replays from a position, and forgets what lies before it", async () => {
    const folder = new MemoryLogFolder();
    const { log } = await open(folder);
    const ends = await appendAll(log, numbered(40));
    const position = ends[29]!;
    const before = log.bytes;
    await log.trim(position);
    assert.ok(log.bytes < before);
    const again = await open(folder, position);
    assert.deepEqual(again.read, numbered(10, 30));
    assert.deepEqual(again.damage, []);
  });

  test("cuts a torn tail off and never reads past it", async () => {
    const folder = new MemoryLogFolder();
    const { log } = await open(folder);
    await appendAll(log, numbered(3));
    folder.failAfter(1); // the append leaves half of its bytes
    await assert.rejects(
      log.append(Buffer.from("never acknowledged"), () => assert.fail()),
      DiskFault,
    );
    const torn = await open(folder.afterPowerLoss(1, true));
    assert.deepEqual(torn.read, numbered(3));
    assert.deepEqual(torn.damage, []);
    // What the failed write left is not part of the log for those who go on either.
    await appendAll(log, numbered(2, 3));
    assert.deepEqual((await open(folder.afterPowerLoss(1, true))).read, numbered(5));
  });

  test("a failed sync costs nobody who was told yes", async () => {
    const folder = new MemoryLogFolder();
    const { log } = await open(folder);
    await appendAll(log, numbered(2));
    folder.failAfter(2);
    await assert.rejects(
      log.append(Buffer.from("unsure"), () => assert.fail()),
      DiskFault,
    );
    await appendAll(log, numbered(2, 2));
    for (const keep of [0, 1]) assert.deepEqual((await open(folder.afterPowerLoss(keep, true))).read, numbered(4));
  });

  test("goes on when it can after a rotation failed at any step", async () => {
    for (let step = 1; step <= 5; step++) {
      const folder = new MemoryLogFolder();
      const { log } = await open(folder);
      await appendAll(
        log,
        Array.from("abcdef", (c) => c.repeat(60)),
      );
      const acknowledged: string[] = [];
      folder.failAfter(step);
      for (const text of Array.from("ghijklmnop", (c) => c.repeat(60))) {
        await log
          .append(Buffer.from(text), () => acknowledged.push(text))
          .catch((error: unknown) => {
            assert.ok(error instanceof DiskFault);
          });
      }
      assert.ok(acknowledged.length >= 9, `step ${step}`);
      const { read } = await open(folder.afterPowerLoss(0, false));
      assert.deepEqual(
        read.filter((text) => acknowledged.includes(text)),
        acknowledged,
      );
    }
  });

  test("says what it can no longer read, and goes on behind it", async () => {
    const folder = new MemoryLogFolder();
    const first = await open(folder);
    await appendAll(first.log, numbered(3));
    await first.log[Symbol.asyncDispose]();
    const second = await open(folder);
    await appendAll(second.log, numbered(2, 3));
    const bytes = await folder.read(segmentName(1));
    const records = [...readRecords(bytes, 0)];
    folder.damage(segmentName(1), (records[2]?.end ?? 0) - 1); // the second of the three
    const { read, damage } = await open(folder);
    assert.deepEqual(read, ["record 0", "record 3", "record 4"]);
    assert.deepEqual(damage, [{ segment: 1, lostBytes: bytes.length - (records[1]?.end ?? 0) }]);
  });

  test("zeros behind the end are no records", () => {
    const bytes = Buffer.concat([encodeRecord(Buffer.from("one")), Buffer.alloc(64)]);
    assert.deepEqual(
      [...readRecords(bytes, 0)].map(({ payload }) => Buffer.from(payload).toString()),
      ["one"],
    );
  });

  test("keeps every acknowledged record through power cuts at any operation", async () => {
    const anyLife = fc.record({
      cuts: fc.array(
        fc.record({
          after: fc.integer({ min: 1, max: 40 }),
          keep: fc.constantFrom(0, 0.3, 0.99, 1),
          entries: fc.boolean(),
          burst: fc.integer({ min: 1, max: 5 }),
        }),
        { minLength: 1, maxLength: 6 },
      ),
    });
    await fc.assert(
      fc.asyncProperty(anyLife, async ({ cuts }) => {
        let folder = new MemoryLogFolder();
        const acknowledged: string[] = [];
        let next = 0;
        for (const { after, keep, entries, burst } of cuts) {
          folder.cutPowerAfter(after);
          try {
            const { log, read } = await open(folder);
            assert.deepEqual(
              read.filter((text) => acknowledged.includes(text)),
              acknowledged,
            );
            for (;;) {
              const texts = numbered(burst, next);
              next += burst;
              await Promise.all(texts.map((text) => log.append(Buffer.from(text), () => acknowledged.push(text))));
            }
          } catch (error) {
            if (!(error instanceof PowerLoss)) throw error;
          }
          folder = folder.afterPowerLoss(keep, entries);
        }
        const { read, damage } = await open(folder);
        assert.deepEqual(
          read.filter((text) => acknowledged.includes(text)),
          acknowledged,
        );
        assert.deepEqual(damage, []);
        assert.deepEqual(read, [...new Set(read)]);
      }),
      { numRuns: 200 },
    );
  });
});
