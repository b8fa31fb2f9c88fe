import assert from "node:assert/strict";
import { test } from "node:test";
import { newId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { failureOf } from "../domain/build.ts";
import { migrations } from "./schema.ts";
import { SqlBuildStore } from "./sql-build-store.ts";

const tenantId = newId("tenant");
const limits = { unfinished: 100, unfinishedPerTenant: 100 };
const wanted = (idempotencyKey: string) => ({
  buildId: newId("build"),
  tenantId,
  idempotencyKey,
  request: {
    source: { kind: "reference" as const, reference: "a" },
    plainHttp: false,
    format: "erofs" as const,
    argvOverride: ["x"],
  },
  withCredentials: true,
  platform: "linux/amd64",
  nowMs: 1,
});

test("a build moves once from a state, and steps follow each other without a gap", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new SqlBuildStore(sql);
  const { build, created } = await store.create(wanted("k"), limits);
  assert.equal(created, true);
  assert.equal(await store.advance(build, "pending", "pull", {}, 5), true);
  assert.equal(await store.advance(build, "pending", "cancel", {}, 6), false, "it is not pending any more");
  assert.equal(await store.advance(build, "pulling", "extract", { bytes: { done: 7, total: 8 } }, 9), true);
  assert.equal(await store.advance(build, "extracting", "fail", { failure: failureOf(new Error("x")) }, 10), true);
  const now = await store.get(tenantId, build.buildId);
  assert.deepEqual(now.steps, [
    { state: "pending", startedAtMs: 1, endedAtMs: 5, bytesDone: 0, bytesTotal: 0 },
    { state: "pulling", startedAtMs: 5, endedAtMs: 9, bytesDone: 7, bytesTotal: 8 },
    { state: "extracting", startedAtMs: 9, endedAtMs: 10, bytesDone: 0, bytesTotal: 0 },
    { state: "failed", startedAtMs: 10, endedAtMs: 10, bytesDone: 0, bytesTotal: 0 },
  ]);
  assert.deepEqual(
    [now.attempts, now.failure?.reason, now.withCredentials, now.request.argvOverride],
    [1, "INTERNAL", true, ["x"]],
  );
  await assert.rejects(store.advance(now, "failed", "pull", {}, 11), /failed cannot pull/);
  assert.deepEqual(await store.unfinished(), []);
});

test("a log keeps its order and its bounds", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new SqlBuildStore(sql);
  const { build } = await store.create(wanted("k"), limits);
  for (let at = 0; at < 2005; at++) await store.log(build, at === 0 ? `a\n${"b".repeat(5000)}` : `line ${at}`, at);
  const first = await store.readLog(build, 0, 2);
  assert.deepEqual(
    first.map(({ sequence }) => sequence),
    [1, 2],
  );
  assert.equal(first[0]?.text.length, 2000);
  assert.ok(!first[0]?.text.includes("\n"));
  assert.equal((await store.readLog(build, 0, 5000)).length, 2000);
  const full = "the log is full: later lines are left out";
  assert.deepEqual(await store.readLog(build, 1998, 5), [
    { sequence: 1999, atMs: 1998, text: "line 1998" },
    { sequence: 2000, atMs: 1999, text: full },
  ]);
});

test("a log of long lines is bounded by its length, and nothing follows the line that says so", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new SqlBuildStore(sql);
  const { build } = await store.create(wanted("k"), limits);
  for (let at = 0; at < 300; at++) await store.log(build, "é".repeat(2000), at);
  await store.log(build, "short", 300);
  const lines = await store.readLog(build, 0, 5000);
  assert.equal(lines.at(-1)?.text, "the log is full: later lines are left out");
  assert.equal(lines.length, Math.floor((512 * 1024) / 2000) + 1);
});
