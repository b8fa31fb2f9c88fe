import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { openSqlite, type Sql } from "@unkey/sql";
import { judgeWindows } from "../domain/check-window.ts";
import { type BatchEnvelope, openBatch } from "../domain/open-batch.ts";
import { temporaryFolder } from "../testing/engine.ts";
import { batchesByMinute, testBatch, testSeries, testWindows } from "../testing/simulated-host.ts";
import { SqlInbox } from "./sql-inbox.ts";
import { migrations } from "./sql-schema.ts";

const nowMs = Date.UTC(2026, 10, 23, 13, 30);
const full = (error: unknown) => isServiceError(error, "INBOX_FULL");

async function open(options: { path?: string; maxBytes?: number } = {}) {
  const sql = await openSqlite({ path: options.path ?? ":memory:", migrations });
  return { sql, inbox: new SqlInbox(sql, { maxBytes: options.maxBytes ?? 1_000_000 }) };
}

function take(inbox: SqlInbox, envelope: BatchEnvelope, receivedAtMs = nowMs) {
  const opened = openBatch(envelope);
  assert.ok(opened.kind === "batch");
  const { batch } = opened;
  return inbox.accept(envelope, batch, receivedAtMs, (heads) =>
    judgeWindows(batch.windows, heads, { hostId: batch.hostId, nowMs }),
  );
}

const series = testSeries();
const { hostId } = series;
const batches = batchesByMinute(hostId, testWindows(series, { fromMs: nowMs - 150_000, toMs: nowMs }));

test("takes a batch once, in order, with what survives a restart", async () => {
  await using folder = await temporaryFolder();
  const path = join(folder.path, "billing.sqlite");
  {
    const { sql, inbox } = await open({ path });
    await using _ = sql;
    for (const [index, batch] of batches.entries()) {
      assert.deepEqual(await take(inbox, batch), { kind: "accepted", seq: index + 1, setAside: [] });
    }
  }
  const { sql, inbox } = await open({ path });
  await using _ = sql;
  for (const batch of batches) assert.deepEqual(await take(inbox, batch), { kind: "duplicate" });
  const entries = await inbox.after(1, 10);
  assert.deepEqual(
    entries.map(({ seq, envelope }) => [seq, envelope.batchId, Buffer.from(envelope.zstd)]),
    batches.slice(1).map((batch, index) => [index + 2, batch.batchId, Buffer.from(batch.zstd)]),
  );
  assert.equal(await inbox.lastSeq(), batches.length);
});

test("other content under a taken id is a conflict, and changes nothing", async () => {
  const { sql, inbox } = await open();
  await using _ = sql;
  const fields = { hostId, minuteAtMs: nowMs, batchSeq: 1 };
  await take(inbox, testBatch({ ...fields, windows: [] }));
  const forged = testBatch({ ...fields, windows: testWindows(series, { fromMs: nowMs - 60_000, toMs: nowMs }) });
  assert.deepEqual(await take(inbox, forged), { kind: "conflict" });
  assert.equal((await inbox.after(0, 10)).length, 1);
});

test("remembers which windows are set aside", async () => {
  const { sql, inbox } = await open();
  await using _ = sql;
  const [good] = testWindows(series, { fromMs: nowMs - 60_000, toMs: nowMs });
  assert.ok(good);
  const odd = testBatch({ hostId, minuteAtMs: nowMs, batchSeq: 1, windows: [good, { ...good, windowStartMs: 1n }] });
  const acceptance = await take(inbox, odd);
  assert.ok(acceptance.kind === "accepted");
  assert.equal(acceptance.setAside[0]?.index, 1);
  assert.deepEqual((await inbox.after(0, 1))[0]?.setAside, new Set([1]));
});

test("a failure inside leaves nothing behind", async () => {
  const { sql, inbox } = await open();
  await using _ = sql;
  const [batch] = batches as [BatchEnvelope];
  const opened = openBatch(batch);
  assert.ok(opened.kind === "batch");
  await assert.rejects(
    inbox.accept(batch, opened.batch, nowMs, () => {
      throw new Error("broken");
    }),
    /broken/,
  );
  assert.equal(await inbox.lastSeq(), 0);
  assert.deepEqual(await take(inbox, batch), { kind: "accepted", seq: 1, setAside: [] });
});

test("refuses what does not fit, and makes room of what has been projected only", async () => {
  const size = batches.reduce((sum, { zstd }) => sum + zstd.length, 0);
  const { sql, inbox } = await open({ maxBytes: size });
  await using _ = sql;
  for (const batch of batches) await take(inbox, batch);
  const next = testBatch({ hostId, minuteAtMs: nowMs, batchSeq: 99, windows: [] });
  await assert.rejects(take(inbox, next), full);
  assert.equal(await inbox.prune(0, nowMs), 0);
  await assert.rejects(take(inbox, next), full);
  assert.equal(await inbox.prune(1, 0), 1);
  assert.equal((await take(inbox, next)).kind, "accepted");
  assert.equal(await storedBytes(sql), await weighedBytes(sql));
});

test("forgets what is old and projected; a number is never given out again", async () => {
  const { sql, inbox } = await open();
  await using _ = sql;
  for (const [index, batch] of batches.entries()) await take(inbox, batch, nowMs + index);
  assert.equal(await inbox.prune(batches.length, nowMs + 1), 1);
  assert.equal(await inbox.prune(batches.length, nowMs + 1e9), batches.length - 1);
  assert.deepEqual(await inbox.after(0, 10), []);
  assert.equal(await weighedBytes(sql), 0);
  const [again] = batches as [BatchEnvelope];
  assert.deepEqual(await take(inbox, again), { kind: "accepted", seq: batches.length + 1, setAside: [] });
});

test("keeps so many batches in quarantine and no more", async () => {
  const { sql, inbox } = await open();
  await using _ = sql;
  const [batch] = batches as [BatchEnvelope];
  for (let i = 0; i < 3; i++) await inbox.quarantine(batch, nowMs, "odd");
  assert.deepEqual(await sql.query("SELECT why FROM quarantined_batch"), [{ why: "odd" }]);
  await sql.run(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999)
    INSERT INTO quarantined_batch SELECT i, x'00', 0, 'odd', 0, x'00' FROM n`);
  await assert.rejects(inbox.quarantine({ ...batch, batchId: "f".repeat(64) }, nowMs, "odd"), full);
});

test("says how far its batches reach", async () => {
  const { sql, inbox } = await open();
  await using _ = sql;
  const query = { tenantId: series.tenantId, appId: "", vmId: "", aliveSinceMs: 0, afterSeq: 0 };
  const nothing = { openSeriesMs: undefined, hostsMs: undefined, unprojectedMs: undefined };
  assert.deepEqual(await inbox.progress(query), nothing);
  const [first, second] = batches as [BatchEnvelope, BatchEnvelope];
  await take(inbox, second);
  await take(inbox, first);
  const openSeriesMs = Math.floor(nowMs / 60_000) * 60_000 - 60_000;
  assert.deepEqual(await inbox.progress({ ...query, afterSeq: 1 }), {
    openSeriesMs,
    hostsMs: openSeriesMs - 60_000,
    unprojectedMs: openSeriesMs - 120_000,
  });
  assert.equal((await inbox.progress({ ...query, aliveSinceMs: nowMs + 1 })).hostsMs, undefined);
  for (const narrow of [
    { vmId: testSeries().vmId },
    { appId: testSeries().appId },
    { tenantId: testSeries().tenantId },
  ]) {
    assert.equal((await inbox.progress({ ...query, ...narrow })).openSeriesMs, undefined);
  }
  for (const batch of batches) await take(inbox, batch);
  assert.equal((await inbox.progress(query)).openSeriesMs, undefined);
});

async function weighedBytes(sql: Sql): Promise<number | undefined> {
  return (await sql.one<{ inbox_bytes: number }>("SELECT inbox_bytes FROM pipeline"))?.inbox_bytes;
}

async function storedBytes(sql: Sql): Promise<number | undefined> {
  return (await sql.one<{ bytes: number }>("SELECT sum(length(body_zstd)) AS bytes FROM inbox"))?.bytes;
}
