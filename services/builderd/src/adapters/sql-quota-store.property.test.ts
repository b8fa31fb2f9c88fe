import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type BuildId, newId, type TenantId } from "@unkey/base";
import { openSqlite, type Sql } from "@unkey/sql";
import * as fc from "fast-check";
import type { BuildEvent, BuildState } from "../domain/build-state.ts";
import { dayStartMs, type QuotaUse } from "../domain/quota.ts";
import { migrations } from "./schema.ts";
import { SqlBuildStore } from "./sql-build-store.ts";
import { SqlQuotaStore } from "./sql-quota-store.ts";

const limits = { unfinished: 1000, unfinishedPerTenant: 1000 };
const tenants: readonly TenantId[] = [newId("tenant"), newId("tenant")];
const hourMs = 3_600_000;

/** What a build costs, kept as a list of facts. */
interface ModelBuild {
  readonly tenantId: TenantId;
  readonly buildId: BuildId;
  readonly createdAtMs: number;
  state: BuildState;
  attempts: number;
  cacheHit: boolean;
  readonly work: { fromMs: number; toMs: number | undefined }[];
  readonly fetches: Map<number, { readonly atMs: number; bytes: number }>;
}

const next: Partial<Record<BuildState, BuildEvent>> = {
  pending: "pull",
  pulling: "extract",
  extracting: "write",
  writing: "register",
  registering: "complete",
};
const led: Partial<Record<BuildEvent, BuildState>> = {
  pull: "pulling",
  extract: "extracting",
  write: "writing",
  register: "registering",
  complete: "completed",
  fail: "failed",
  cancel: "cancelled",
  requeue: "pending",
};
const isWork = (state: BuildState) => ["pulling", "extracting", "writing", "registering"].includes(state);
const hasEnded = (state: BuildState) => ["completed", "failed", "cancelled"].includes(state);

function usedOf(builds: readonly ModelBuild[], tenantId: TenantId, nowMs: number): QuotaUse {
  const dayMs = dayStartMs(nowMs);
  const used = { running: 0, builds: 0, bytes: 0, buildMs: 0 };
  for (const build of builds) {
    if (build.tenantId !== tenantId) continue;
    if (isWork(build.state)) used.running++;
    const worked = build.attempts > 0 || !hasEnded(build.state);
    if (build.createdAtMs >= dayMs && !build.cacheHit && worked) used.builds++;
    for (const { atMs, bytes } of build.fetches.values()) if (atMs >= dayMs) used.bytes += bytes;
    for (const { fromMs, toMs = nowMs } of build.work) used.buildMs += Math.max(0, toMs - Math.max(fromMs, dayMs));
  }
  return used;
}

const anyMove = fc.oneof(
  fc.record({ kind: fc.constant("create" as const), tenant: fc.nat(1) }),
  fc.record({
    kind: fc.constant("advance" as const),
    which: fc.nat(31),
    how: fc.constantFrom("on", "on", "on", "fail", "cancel", "requeue", "hit", "hit"),
  }),
  fc.record({ kind: fc.constant("admit" as const), which: fc.nat(31), bytes: fc.nat(1_000_000) }),
  fc.record({ kind: fc.constant("settle" as const), which: fc.nat(31), bytes: fc.nat(1_000_000) }),
  fc.record({
    kind: fc.constant("wait" as const),
    ms: fc.oneof(fc.integer({ min: 1, max: 9 * hourMs }), fc.constant(2 * hourMs)),
  }),
  fc.record({ kind: fc.constant("reopen" as const) }),
);

test("usage read off the rows is what a list of facts says, over midnights, retries and restarts", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(anyMove, { minLength: 5, maxLength: 80, size: "max" }), async (moves) => {
      const directory = await mkdtemp(join(tmpdir(), "quota-"));
      const open = () => openSqlite({ path: join(directory, "builderd.db"), migrations });
      let sql: Sql = await open();
      let nowMs = Date.UTC(2026, 0, 1, 20);
      const model: ModelBuild[] = [];
      try {
        for (const move of moves) {
          const builds = new SqlBuildStore(sql);
          const quotas = new SqlQuotaStore(sql);
          const chosen = "which" in move && model.length > 0 ? model[move.which % model.length] : undefined;
          if (move.kind === "create") {
            const [tenantId, buildId] = [tenants[move.tenant] ?? newId("tenant"), newId("build")];
            const source = { kind: "reference", reference: "a" } as const;
            const request = { source, plainHttp: false, format: "erofs", argvOverride: [] } as const;
            const asked = { tenantId, buildId, idempotencyKey: buildId, request, platform: "linux/amd64", nowMs };
            await builds.create({ ...asked, withCredentials: false }, limits);
            const facts = { work: [], fetches: new Map(), attempts: 0, cacheHit: false };
            model.push({ tenantId, buildId, createdAtMs: nowMs, state: "pending", ...facts });
          } else if (move.kind === "wait") nowMs += move.ms;
          else if (move.kind === "reopen") {
            await sql[Symbol.asyncDispose]();
            sql = await open();
          } else if (chosen !== undefined && !hasEnded(chosen.state)) {
            const build = await builds.get(chosen.tenantId, chosen.buildId);
            if (move.kind === "admit") {
              if (!isWork(chosen.state)) continue;
              await quotas.admitFetch(build, move.bytes, {
                today: { startMs: dayStartMs(nowMs), nowMs },
                check: (used) => assert.deepEqual(used, usedOf(model, chosen.tenantId, nowMs)),
              });
              const earlier = chosen.fetches.get(chosen.attempts);
              if (earlier === undefined) chosen.fetches.set(chosen.attempts, { atMs: nowMs, bytes: move.bytes });
              else earlier.bytes += move.bytes;
            } else if (move.kind === "settle") {
              await quotas.settleFetch(build, move.bytes);
              const fetch = chosen.fetches.get(chosen.attempts);
              if (fetch !== undefined) fetch.bytes = move.bytes;
            } else {
              const hit = move.how === "hit";
              if (hit && chosen.state !== "pulling") continue;
              const event = hit ? "complete" : move.how === "on" ? next[chosen.state] : (move.how as BuildEvent);
              assert.ok(event);
              const completion = {
                result: {
                  imageDigest: "d",
                  rootfsAssetId: newId("asset"),
                  rootfsBytes: 1,
                  provenanceAssetId: newId("asset"),
                  sbomAssetId: newId("asset"),
                  process: {
                    argv: ["a"],
                    env: [],
                    workingDir: "/",
                    uid: 0,
                    gid: 0,
                    groups: [],
                    stopSignal: "",
                    exposedPorts: [],
                  },
                },
                rootfsKey: "k",
                cacheHit: hit,
              };
              const change =
                event === "complete" ? { completion: { ...completion, process: completion.result.process } } : {};
              assert.equal(await builds.advance(build, chosen.state, event, change, nowMs), true);
              const last = chosen.work.at(-1);
              if (last !== undefined) last.toMs ??= nowMs;
              chosen.state = led[event] ?? chosen.state;
              if (event === "pull") chosen.attempts++;
              if (isWork(chosen.state)) chosen.work.push({ fromMs: nowMs, toMs: undefined });
              if (hit) chosen.cacheHit = true;
            }
          }
          const today = { startMs: dayStartMs(nowMs), nowMs };
          for (const tenantId of tenants) {
            assert.deepEqual(
              { ...(await new SqlQuotaStore(sql).used(tenantId, today)) },
              usedOf(model, tenantId, nowMs),
            );
          }
          // What retention takes away is never what quotas count.
          await new SqlBuildStore(sql).prune({
            endedBeforeMs: today.startMs,
            keptPerTenant: 0,
            todayMs: today.startMs,
          });
          for (const tenantId of tenants) {
            assert.deepEqual(
              { ...(await new SqlQuotaStore(sql).used(tenantId, today)) },
              usedOf(model, tenantId, nowMs),
            );
          }
        }
      } finally {
        await sql[Symbol.asyncDispose]();
        await rm(directory, { recursive: true, force: true });
      }
    }),
    { numRuns: 80 },
  );
});
