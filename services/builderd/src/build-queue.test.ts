import assert from "node:assert/strict";
import { test } from "node:test";
import { type BuildId, type Clock, newId, systemClock, type TenantId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { openSqlite, type Sql } from "@unkey/sql";
import { migrations } from "./adapters/schema.ts";
import { SqlBuildStore } from "./adapters/sql-build-store.ts";
import { SqlQuotaStore } from "./adapters/sql-quota-store.ts";
import { BuildFeed } from "./build-feed.ts";
import { BuildQueue } from "./build-queue.ts";
import { BuildQuotas } from "./build-quotas.ts";
import type { Build, BuildSource } from "./domain/build.ts";
import type { BuildEvent, BuildState } from "./domain/build-state.ts";
import { defaultBuildPolicy } from "./domain/policy.ts";
import { type BuildQuota, defaultBuildQuota } from "./domain/quota.ts";

const limits = { unfinished: 100, unfinishedPerTenant: 100 };
const reference: BuildSource = { kind: "reference", reference: "registry.example/a" };

interface Options {
  readonly concurrency?: number;
  readonly quota?: Partial<BuildQuota>;
  readonly clock?: Clock;
  readonly beatMs?: number;
  /** Where the runner stops to wait for the test, or for its end. */
  readonly at?: BuildState;
}

const way: readonly [BuildState, BuildEvent][] = [
  ["pending", "pull"],
  ["pulling", "extract"],
  ["extracting", "write"],
  ["writing", "register"],
];

/** A queue over real rows, whose runner takes each build to one state and waits there. */
function queueOver(
  sql: Sql,
  { concurrency = 3, quota = {}, clock = systemClock, beatMs, at = "pulling" }: Options = {},
) {
  const store = new SqlBuildStore(sql);
  const order: TenantId[] = [];
  const inside = new Set<BuildId>();
  const ends = new Map<BuildId, () => void>();
  const freed: number[] = [];
  const changed = new EventTarget();
  const rules = {
    rulesOf: () => ({ policy: defaultBuildPolicy, policyDigest: "", quota: { ...defaultBuildQuota, ...quota } }),
  };
  const queue = new BuildQueue({
    store,
    runner: {
      run: async (build: Build, _credentials, signal) => {
        const ended = Promise.withResolvers<void>();
        signal.addEventListener("abort", () => ended.reject(signal.reason), { once: true });
        ends.set(build.buildId, ended.resolve);
        for (const [from, event] of way) {
          if (from === at) break;
          await store.advance(build, from, event, {}, clock.nowMs());
        }
        order.push(build.tenantId);
        inside.add(build.buildId);
        changed.dispatchEvent(new Event("changed"));
        try {
          await ended.promise;
        } finally {
          inside.delete(build.buildId);
        }
      },
    },
    feed: new BuildFeed(),
    uploads: { sweep: async () => void freed.push(1) },
    quotas: new BuildQuotas({ store: new SqlQuotaStore(sql), rules, clock }),
    rules,
    concurrency,
    buildTimeoutMs: 60_000,
    ...(beatMs === undefined ? {} : { beatMs }),
    scratchDirectory: "/nonexistent",
    clock,
    log: createLogger({ write: () => undefined }),
    metrics: new Metrics(),
    abort: AbortSignal.abort(new Error("at once")),
  });
  return {
    store,
    queue,
    order,
    inside,
    freed,
    end: (buildId: BuildId) => ends.get(buildId)?.(),
    running: async (count: number): Promise<void> => {
      while (inside.size < count)
        await new Promise((resolve) => changed.addEventListener("changed", resolve, { once: true }));
    },
    ask: async (tenantId: TenantId, source: BuildSource = reference, withCredentials = false): Promise<Build> => {
      const buildId = newId("build");
      const request = { source, plainHttp: false, format: "erofs", argvOverride: [] } as const;
      const asked = { buildId, tenantId, idempotencyKey: buildId, request, withCredentials, platform: "linux/amd64" };
      const { build } = await store.create({ ...asked, nowMs: clock.nowMs() }, limits);
      queue.enqueue(build, withCredentials ? { username: "u", password: "p" } : undefined);
      return build;
    },
  };
}

test("two slow pulls of one tenant leave a place to another, however many more it asks for", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const { queue, ask, order, running } = queueOver(sql);
  await using _queue = queue;
  const [greedy, other] = [newId("tenant"), newId("tenant")];
  for (let at = 0; at < 5; at++) await ask(greedy);
  await running(2);
  await ask(other);
  await running(3);
  assert.deepEqual(order, [greedy, greedy, other]);
});

test("a tenant runs no more at once than its quota says; the next begins when one ends", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const { queue, ask, inside, running, end } = queueOver(sql, { concurrency: 8, quota: { concurrent: 2 } });
  await using _queue = queue;
  const tenantId = newId("tenant");
  const builds = [await ask(tenantId), await ask(tenantId), await ask(tenantId)];
  await running(2);
  const ids = builds.map(({ buildId }) => buildId);
  assert.deepEqual([...inside], ids.slice(0, 2));
  end(ids[0] ?? newId("build"));
  while (!inside.has(ids[2] ?? newId("build"))) await new Promise(setImmediate);
  assert.deepEqual([...inside], ids.slice(1));
});

for (const at of ["pulling", "extracting", "writing", "registering"] as const) {
  test(`a cancellation while ${at} ends the work before it answers, and the next has its place`, async () => {
    await using sql = await openSqlite({ path: ":memory:", migrations });
    const { queue, store, ask, inside, running, freed } = queueOver(sql, { concurrency: 1, at });
    await using _queue = queue;
    const tenantId = newId("tenant");
    const uploadId = newId("upload");
    await sql.run(
      "INSERT INTO upload (tenant_id, upload_id, digest, size_bytes, expires_at_ms) VALUES (?, ?, '', 1, ?)",
      [tenantId, uploadId, Number.MAX_SAFE_INTEGER],
    );
    const build = await ask(tenantId, { kind: "upload", uploadId });
    const next = await ask(tenantId);
    await running(1);
    assert.equal((await store.get(tenantId, build.buildId)).state, at);
    await queue.cancel(build);
    assert.ok(!inside.has(build.buildId));
    assert.equal(freed.length, 1, "its upload was looked after");
    const { state, steps } = await store.get(tenantId, build.buildId);
    assert.equal(state, "cancelled");
    assert.ok(steps.every(({ endedAtMs }) => endedAtMs > 0));
    await running(1);
    assert.deepEqual([...inside], [next.buildId]);
  });
}

test("a build that is cancelled while it waits frees its upload and never begins", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const { queue, store, ask, order, running, freed, end } = queueOver(sql, { concurrency: 1 });
  await using _queue = queue;
  const tenantId = newId("tenant");
  const uploadId = newId("upload");
  await sql.run(
    "INSERT INTO upload (tenant_id, upload_id, digest, size_bytes, expires_at_ms) VALUES (?, ?, '', 1, ?)",
    [tenantId, uploadId, Number.MAX_SAFE_INTEGER],
  );
  const first = await ask(tenantId);
  const waiting = await ask(tenantId, { kind: "upload", uploadId });
  const third = await ask(tenantId);
  await running(1);
  await queue.cancel(waiting);
  assert.equal(freed.length, 1);
  end(first.buildId);
  while (order.length < 2) await new Promise(setImmediate);
  const { attempts, state } = await store.get(tenantId, waiting.buildId);
  assert.deepEqual([attempts, state], [0, "cancelled"]);
  assert.equal((await store.get(tenantId, third.buildId)).state, "pulling");
});

test("running builds of a tenant end when its minutes are used up; another tenant's go on", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  let nowMs = Date.UTC(2026, 0, 1, 12);
  const clock: Clock = { ...systemClock, nowMs: () => nowMs };
  const { queue, store, ask, inside, running } = queueOver(sql, {
    clock,
    beatMs: 5,
    concurrency: 4,
    quota: { minutesPerDay: 20 },
  });
  await using _queue = queue;
  const [spent, other] = [newId("tenant"), newId("tenant")];
  const builds = [await ask(spent), await ask(spent)];
  await running(2);
  nowMs += 9 * 60_000;
  const late = await ask(other);
  await running(3);
  nowMs += 60_000; // two builds of ten minutes
  while (inside.size > 1) await new Promise(setImmediate);
  assert.deepEqual([...inside], [late.buildId]);
  for (const { buildId } of builds) {
    while ((await store.get(spent, buildId)).state !== "failed") await new Promise(setImmediate);
    const { failure } = await store.get(spent, buildId);
    assert.equal(failure?.reason, "BUILD_QUOTA_EXCEEDED");
    assert.match(failure.message, /20 minutes of building a day: 20 are used; .* 2026-01-02T00:00:00/);
  }
});

test("a build whose process died counts until it was last seen alive, and begins anew", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  let nowMs = Date.UTC(2026, 0, 1, 12);
  const clock: Clock = { ...systemClock, nowMs: () => nowMs };
  const tenantId = newId("tenant");
  const store = new SqlBuildStore(sql);
  const first = queueOver(sql, { clock, beatMs: 1, at: "extracting" });
  const plain = await first.ask(tenantId);
  const login = await first.ask(tenantId, reference, true);
  await first.running(2);
  nowMs += 90_000;
  const seen = nowMs;
  const aliveAt = async ({ buildId }: Build) => (await store.get(tenantId, buildId)).aliveAtMs;
  while ((await aliveAt(plain)) < seen || (await aliveAt(login)) < seen) await new Promise(setImmediate);
  // What a kill leaves behind: the rows as they are, and nobody at them for an hour.
  await first.queue[Symbol.asyncDispose]();
  nowMs += 3_600_000;

  const second = queueOver(sql, { clock });
  await using _queue = second.queue;
  await second.queue.recover();
  await second.running(1);
  const lost = await store.get(tenantId, login.buildId);
  assert.equal(lost.failure?.reason, "CREDENTIALS_LOST");
  for (const { steps } of [await store.get(tenantId, plain.buildId), lost]) {
    const { startedAtMs, endedAtMs } = steps.find(({ state }) => state === "extracting") ?? assert.fail();
    assert.equal(endedAtMs - startedAtMs, 90_000);
  }
  const used = await new SqlQuotaStore(sql).used(tenantId, { startMs: 0, nowMs });
  assert.equal(used.buildMs, 180_000);
  assert.deepEqual([...second.inside], [plain.buildId]);
});
