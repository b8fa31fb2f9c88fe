import assert from "node:assert/strict";
import { test } from "node:test";
import { newId, systemClock, type TenantId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { openSqlite } from "@unkey/sql";
import { migrations } from "./adapters/schema.ts";
import { SqlBuildStore } from "./adapters/sql-build-store.ts";
import { BuildFeed } from "./build-feed.ts";
import { BuildQueue } from "./build-queue.ts";
import { defaultBuildPolicy } from "./domain/policy.ts";
import { defaultBuildQuota } from "./domain/quota.ts";

test("a tenant's build does not wait behind another's whole queue", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new SqlBuildStore(sql);
  const abort = new AbortController();
  const order: TenantId[] = [];
  const ends: (() => void)[] = [];
  const started: (() => void)[] = [];
  const log = createLogger({ write: () => undefined });
  const queue = new BuildQueue({
    store,
    runner: {
      run: ({ tenantId }) =>
        new Promise((resolve) => {
          order.push(tenantId);
          ends.push(resolve);
          for (const wake of started.splice(0)) wake();
        }),
    },
    feed: new BuildFeed(),
    uploads: { sweep: async () => undefined },
    quotas: { checkRunning: async () => undefined },
    rules: { rulesOf: () => ({ policy: defaultBuildPolicy, policyDigest: "", quota: defaultBuildQuota }) },
    concurrency: 3,
    buildTimeoutMs: 60_000,
    scratchDirectory: "/nonexistent",
    clock: systemClock,
    log,
    metrics: new Metrics(),
    abort: abort.signal,
  });
  const running = async (count: number) => {
    while (order.length < count) await new Promise<void>((resolve) => started.push(resolve));
  };
  const [greedy, other] = [newId("tenant"), newId("tenant")];
  const limits = { unfinished: 100, unfinishedPerTenant: 100 };
  for (const tenantId of [greedy, greedy, greedy, greedy, other]) {
    const request = {
      source: { kind: "reference", reference: "registry.example/a" },
      plainHttp: false,
      format: "erofs",
      argvOverride: [],
    } as const;
    const buildId = newId("build");
    const wanted = {
      buildId,
      tenantId,
      idempotencyKey: buildId,
      request,
      withCredentials: false,
      platform: "linux/amd64",
    };
    queue.enqueue((await store.create({ ...wanted, nowMs: 1 }, limits)).build, undefined);
  }
  await running(3);
  assert.deepEqual(order, [greedy, greedy, other], "one place is not the greedy one's");
  const closed = queue[Symbol.asyncDispose]();
  for (const end of ends) end();
  await closed;
});
