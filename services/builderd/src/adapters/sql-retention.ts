import type { Sql } from "@unkey/sql";
import type { Retention } from "../ports.ts";

/** Removed in one transaction; others wait for it. */
const batch = 200;

/**
 * Builds that ended too long ago or stand behind too many newer ones of their tenant, with their logs; results that nobody has
 * asked for as long. A build stays as long as the cache holds the root filesystem that it made, and while quotas count it.
 */
export async function pruneBuilds(sql: Sql, { endedBeforeMs, keptPerTenant, todayMs }: Retention): Promise<number> {
  await sql.run("DELETE FROM rootfs WHERE used_at_ms < ?", [endedBeforeMs]);
  for (let removed = 0; ; ) {
    const found = await sql.transaction(async (tx) => {
      const builds = await tx.query<{ build_id: string }>(
        `SELECT build_id FROM (
           SELECT build_id, tenant_id, ended_at_ms, cache_hit, rootfs_asset_id,
             row_number() OVER (PARTITION BY tenant_id ORDER BY build_id DESC) AS place
           FROM build) AS build
         WHERE ended_at_ms > 0 AND ended_at_ms < ? AND (ended_at_ms < ? OR place > ?)
           AND NOT (cache_hit = 0 AND EXISTS (SELECT 1 FROM rootfs
             WHERE rootfs.tenant_id = build.tenant_id AND rootfs.asset_id = build.rootfs_asset_id))
         LIMIT ?`,
        [todayMs, endedBeforeMs, keptPerTenant, batch],
      );
      for (const { build_id: id } of builds) {
        for (const table of ["build_log", "build_step", "build_fetch", "build"]) {
          await tx.run(`DELETE FROM ${table} WHERE build_id = ?`, [id]);
        }
      }
      return builds.length;
    });
    removed += found;
    if (found < batch) return removed;
  }
}
