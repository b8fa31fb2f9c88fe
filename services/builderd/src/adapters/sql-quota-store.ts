import type { TenantId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import type { Build } from "../domain/build.ts";
import type { QuotaUse } from "../domain/quota.ts";
import type { Admission, QuotaStore, Today } from "../ports.ts";

/**
 * Usage is read off the rows of builds, never counted up: whatever was committed before a process died counts, once.
 */
export class SqlQuotaStore implements QuotaStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  used(tenantId: TenantId, today: Today): Promise<QuotaUse> {
    return this.#sql.transaction((tx) => usedToday(tx, tenantId, today));
  }

  async admitFetch({ tenantId, buildId }: Build, bytes: number, { today, check }: Admission): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      check(await usedToday(tx, tenantId, today));
      await tx.run(
        `INSERT INTO build_fetch (tenant_id, build_id, attempt, at_ms, bytes)
         SELECT tenant_id, build_id, attempts, ?, ? FROM build WHERE tenant_id = ? AND build_id = ?
         ON CONFLICT (build_id, attempt) DO UPDATE SET bytes = bytes + excluded.bytes`,
        [today.nowMs, bytes, tenantId, buildId],
      );
    });
  }

  async settleFetch({ tenantId, buildId }: Build, bytes: number): Promise<void> {
    const change = `UPDATE build_fetch SET bytes = ? WHERE build_id = ?
       AND attempt = (SELECT attempts FROM build WHERE tenant_id = ? AND build_id = ?)`;
    // Before it more was written down, which is what a power failure may bring back.
    const durability = "process";
    await this.#sql.transaction((tx) => tx.run(change, [bytes, buildId, tenantId, buildId]), { durability });
  }
}

const running = "state NOT IN ('pending', 'completed', 'failed', 'cancelled')";

/** Inside the transaction that decides by it. */
export async function usedToday(tx: SqlStatements, tenantId: TenantId, today: Today): Promise<QuotaUse> {
  const { startMs, nowMs } = today;
  const used = await tx.one<QuotaUse>(
    `SELECT
       (SELECT count(*) FROM build WHERE tenant_id = ? AND ended_at_ms = 0 AND ${running}) AS running,
       (SELECT count(*) FROM build WHERE tenant_id = ? AND created_at_ms >= ? AND cache_hit = 0
          AND (attempts > 0 OR ended_at_ms = 0)) AS builds,
       (SELECT coalesce(sum(bytes), 0) FROM build_fetch WHERE tenant_id = ? AND at_ms >= ?) AS bytes,
       (SELECT coalesce(sum(max(0, CASE step.ended_at_ms WHEN 0 THEN ? ELSE step.ended_at_ms END
                                   - max(step.started_at_ms, ?))), 0)
          FROM build JOIN build_step AS step USING (build_id)
          WHERE tenant_id = ? AND (build.ended_at_ms = 0 OR build.ended_at_ms > ?)
            AND step.${running}) AS buildMs`,
    [tenantId, tenantId, startMs, tenantId, startMs, nowMs, startMs, tenantId, startMs],
  );
  if (used === undefined) throw new Error("a query of sums has one row");
  return used;
}
