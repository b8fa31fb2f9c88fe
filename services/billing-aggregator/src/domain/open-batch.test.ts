import assert from "node:assert/strict";
import { test } from "node:test";
import { zstdCompressSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { type UsageWindow, UsageWindowSchema, WindowBatchSchema } from "@unkey/api/metering";
import { envelopeOf, hashOf, testBatch, testSeries, testWindows } from "../testing/simulated-host.ts";
import { type BatchEnvelope, batchIdOf, maxBatchBytes, openBatch } from "./open-batch.ts";

const series = testSeries();
const { hostId } = series;
const [window] = testWindows(series, { fromMs: 61_000, toMs: 119_000 }, [
  { cpuTimeUs: 5n, memoryBytes: 2n ** 33n, gap: { fromMs: 10, toMs: 2000 } },
]) as [UsageWindow];
const good = testBatch({ hostId, minuteAtMs: 60_000, batchSeq: 1, logEpoch: 7, windows: [window] });

const kindOf = (envelope: BatchEnvelope) => openBatch(envelope).kind;

function batchOf(windows: UsageWindow[], fields: { batchId?: string } = {}): BatchEnvelope {
  const named = { hostId, logEpoch: 7n, minuteAtMs: 60_000n, batchSeq: 1n };
  const batchId = fields.batchId ?? batchIdOf(named);
  return envelopeOf(batchId, toBinary(WindowBatchSchema, create(WindowBatchSchema, { ...named, batchId, windows })));
}

test("reads a batch as it was sent", () => {
  const opened = openBatch(good);
  assert.equal(opened.kind, "batch");
  assert.ok(opened.kind === "batch");
  const [read] = opened.batch.windows;
  assert.equal(opened.batch.hostId, hostId);
  assert.equal(read?.hash, Buffer.from(hashOf(window)).toString("hex"));
  assert.deepEqual(Buffer.from(read?.record ?? []), Buffer.from(toBinary(UsageWindowSchema, window)));
  assert.equal(read?.logEpoch, 7n);
  assert.deepEqual(read?.memoryAllocated, {
    byteMs: 2n ** 33n * 58_000n,
    minBytes: 2n ** 33n,
    maxBytes: 2n ** 33n,
  });
  assert.deepEqual(read?.gaps, [{ fromMs: 61_010, toMs: 63_000, cause: 0, countersBridged: true }]);
});

test("a batch whose content is not what its envelope says is damaged", () => {
  assert.equal(kindOf({ ...good, bytes: good.bytes - 1 }), "damaged");
  assert.equal(kindOf({ ...good, bytes: good.bytes + 1 }), "damaged");
  assert.equal(kindOf({ ...good, bytes: 0 }), "damaged");
  assert.equal(kindOf({ ...good, sha256: Buffer.alloc(32) }), "damaged");
  assert.equal(kindOf({ ...good, zstd: Buffer.from("no zstd at all") }), "damaged");
  assert.equal(kindOf({ ...good, zstd: good.zstd.subarray(0, good.zstd.length - 3) }), "damaged");
});

test("a bomb is not decompressed beyond what it claims, and may not claim much", () => {
  const bomb = zstdCompressSync(Buffer.alloc(256 * 1024 * 1024));
  const before = process.memoryUsage().rss;
  assert.equal(kindOf({ ...good, zstd: bomb }), "damaged");
  assert.equal(kindOf({ ...good, zstd: bomb, bytes: 256 * 1024 * 1024 }), "invalid");
  assert.equal(kindOf({ ...good, zstd: bomb, bytes: maxBatchBytes }), "damaged");
  assert.ok(process.memoryUsage().rss - before < 128 * 1024 * 1024);
});

test("a batch that no repetition makes right is invalid", () => {
  const otherId = "0".repeat(64);
  assert.equal(kindOf(batchOf([window])), "batch");
  assert.equal(kindOf(batchOf([window], { batchId: otherId })), "invalid");
  assert.equal(kindOf({ ...good, batchId: otherId }), "invalid");
  assert.equal(kindOf(envelopeOf(good.batchId, Buffer.from("not a WindowBatch"))), "invalid");
  assert.equal(kindOf(batchOf([create(UsageWindowSchema, { series })])), "invalid"); // no counters
  const integral = { byteMs: "-1", minBytes: 0n, maxBytes: 0n, $typeName: "unkey.metering.v1.GaugeIntegral" } as const;
  assert.equal(kindOf(batchOf([{ ...window, memoryAllocated: integral }])), "invalid");
});
