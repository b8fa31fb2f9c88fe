import assert from "node:assert/strict";
import { test } from "node:test";
import { newId, type TenantId } from "@unkey/base";
import { openSqlite, type Sql } from "@unkey/sql";
import type { BuildEvent } from "../domain/build-state.ts";
import { migrations } from "./schema.ts";
import { SqlBuildStore } from "./sql-build-store.ts";

const dayMs = 86_400_000;
const limits = { unfinished: 1000, unfinishedPerTenant: 1000 };
const process = {
  argv: ["a"],
  env: [],
  workingDir: "/",
  uid: 0,
  gid: 0,
  groups: [],
  stopSignal: "SIGTERM",
  exposedPorts: [],
};

/** A build of `tenantId` that ends at `atMs`; with a key it is complete and the cache holds what it made. */
async function ended(
  store: SqlBuildStore,
  tenantId: TenantId,
  atMs: number,
  cached?: { readonly rootfsKey: string; readonly cacheHit: boolean },
) {
  const buildId = newId("build", atMs);
  const source = { kind: "reference", reference: "a" } as const;
  const request = { source, plainHttp: false, format: "erofs", argvOverride: [] } as const;
  const { build } = await store.create(
    {
      buildId,
      tenantId,
      idempotencyKey: buildId,
      request,
      withCredentials: false,
      platform: "linux/amd64",
      nowMs: atMs,
    },
    limits,
  );
  await store.log(build, "a line", atMs);
  await store.advance(build, "pending", "pull", {}, atMs);
  if (cached === undefined) {
    await store.advance(build, "pulling", "cancel", {}, atMs);
    return buildId;
  }
  const { rootfsKey, cacheHit } = cached;
  const known = await store.findResult(tenantId, rootfsKey);
  const rootfsAssetId = known?.rootfsAssetId ?? newId("asset");
  const result = {
    imageDigest: "d",
    rootfsAssetId,
    rootfsBytes: 1,
    provenanceAssetId: newId("asset"),
    sbomAssetId: newId("asset"),
    process,
  };
  const events: BuildEvent[] = cacheHit ? [] : ["extract", "write", "register"];
  let state = "pulling" as const as "pulling" | "extracting" | "writing" | "registering";
  for (const event of events) {
    await store.advance(build, state, event, {}, atMs);
    state = event === "extract" ? "extracting" : event === "write" ? "writing" : "registering";
  }
  await store.advance(build, state, "complete", { completion: { result, rootfsKey, process, cacheHit } }, atMs);
  return buildId;
}

async function counts(sql: Sql) {
  const one = async (table: string) => (await sql.one<{ n: number }>(`SELECT count(*) AS n FROM ${table}`))?.n;
  return { builds: await one("build"), steps: await one("build_step"), lines: await one("build_log") };
}

test("builds go when they are old or too many, with their steps and logs; those of today and unfinished ones stay", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new SqlBuildStore(sql);
  const [many, few] = [newId("tenant"), newId("tenant")];
  const todayMs = 100 * dayMs;
  const old = await ended(store, few, todayMs - 40 * dayMs);
  const young = await ended(store, few, todayMs - 10 * dayMs);
  const ofMany: string[] = [];
  for (let day = 5; day > 0; day--) ofMany.push(await ended(store, many, todayMs - day * dayMs));
  const today = await ended(store, many, todayMs + 1);
  const removed = await store.prune({ endedBeforeMs: todayMs - 30 * dayMs, keptPerTenant: 3, todayMs });
  assert.equal(removed, 4);
  assert.deepEqual(
    (await store.list(many, 10, "")).map(({ buildId }) => buildId),
    [today, ofMany[4], ofMany[3]],
  );
  assert.deepEqual(
    (await store.list(few, 10, "")).map(({ buildId }) => buildId),
    [young],
  );
  assert.ok(old !== young);
  assert.deepEqual(await counts(sql), { builds: 4, steps: 12, lines: 4 });
  await store.prune({ endedBeforeMs: todayMs, keptPerTenant: 0, todayMs });
  assert.deepEqual(
    (await store.list(many, 10, "")).map(({ buildId }) => buildId),
    [today],
    "quotas count it",
  );
});

test("the build that made what the cache holds stays with it, and the cache holds what somebody asked for", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new SqlBuildStore(sql);
  const tenantId = newId("tenant");
  const todayMs = 100 * dayMs;
  const cached = { rootfsKey: "used", cacheHit: false };
  const maker = await ended(store, tenantId, todayMs - 90 * dayMs, cached);
  await ended(store, tenantId, todayMs - 90 * dayMs + 1, { rootfsKey: "forgotten", cacheHit: false });
  const hit = await ended(store, tenantId, todayMs - 20 * dayMs, { ...cached, cacheHit: true });
  const retention = { endedBeforeMs: todayMs - 30 * dayMs, keptPerTenant: 10, todayMs };
  assert.equal(await store.prune(retention), 1);
  assert.deepEqual(
    (await store.list(tenantId, 10, "")).map(({ buildId }) => buildId),
    [hit, maker],
  );
  assert.ok(await store.findResult(tenantId, "used"));
  assert.equal(await store.findResult(tenantId, "forgotten"), undefined);
  // Nobody asked for another 30 days: nothing is left.
  assert.equal(await store.prune({ ...retention, endedBeforeMs: todayMs - 10 * dayMs }), 2);
  assert.deepEqual(await counts(sql), { builds: 0, steps: 0, lines: 0 });
});

test("more than one batch goes in one pass", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new SqlBuildStore(sql);
  const tenantId = newId("tenant");
  for (let at = 1; at <= 450; at++) await ended(store, tenantId, at);
  assert.equal(await store.prune({ endedBeforeMs: dayMs, keptPerTenant: 1000, todayMs: 2 * dayMs }), 450);
});
