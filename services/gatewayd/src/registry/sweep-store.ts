import type { AssetId, TenantId } from "@unkey/base";
import type { Sql } from "@unkey/sql";
import type { Sha256 } from "./digest.ts";
import { dropManifest } from "./manifest-store.ts";

export interface SweepAges {
  readonly nowMs: number;
  /** What nothing refers to is kept for so long. */
  readonly graceMs: number;
  /** A manifest that no tag, index or build names is kept for so long. */
  readonly untaggedMs: number;
}

export interface Releasing {
  readonly tenantId: TenantId;
  readonly digest: Sha256;
  /** Empty when a crash fell between storing the bytes and noting them. */
  readonly assetId: AssetId | "";
}

/** What the registry no longer needs, over all tenants. */
export class SweepStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** Ends the holds of deployments that have ended: nothing builds from those images any more. */
  async endHolds(): Promise<void> {
    await this.#sql.run(
      "DELETE FROM registry_hold WHERE deployment_id IN (SELECT h.deployment_id FROM registry_hold h JOIN deployment d ON d.deployment_id = h.deployment_id WHERE d.ended_at_ms > 0)",
    );
  }

  /** Drops manifests that nothing names: no tag, no index, no build, no subject that is there. Answers how many. */
  async dropManifests({ nowMs, untaggedMs }: SweepAges, limit: number): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      const rows = await tx.query<{ tenant_id: TenantId; repository: string; digest: string }>(
        `SELECT m.tenant_id, m.repository, m.digest FROM registry_manifest m
         WHERE m.touched_at_ms < ?
           AND NOT EXISTS (SELECT 1 FROM registry_tag t WHERE t.tenant_id = m.tenant_id AND t.repository = m.repository AND t.digest = m.digest)
           AND NOT EXISTS (SELECT 1 FROM registry_reference r WHERE r.tenant_id = m.tenant_id AND r.repository = m.repository AND r.digest = m.digest)
           AND NOT EXISTS (SELECT 1 FROM registry_hold h WHERE h.tenant_id = m.tenant_id AND h.digest = m.digest)
           AND NOT EXISTS (SELECT 1 FROM registry_manifest s WHERE s.tenant_id = m.tenant_id AND s.repository = m.repository AND s.digest = m.subject)
         ORDER BY m.touched_at_ms LIMIT ?`,
        [nowMs - untaggedMs, limit],
      );
      for (const { tenant_id: tenantId, repository, digest } of rows) {
        await dropManifest(tx, { tenantId, repository }, digest, nowMs);
      }
      return rows.length;
    });
  }

  /** Takes blobs out of repositories where no manifest refers to them. Answers how many. */
  async dropLinks({ nowMs, graceMs }: SweepAges, limit: number): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      const rows = await tx.query<{ tenant_id: TenantId; repository: string; digest: string }>(
        `SELECT l.tenant_id, l.repository, l.digest FROM registry_link l
         WHERE l.touched_at_ms < ?
           AND NOT EXISTS (SELECT 1 FROM registry_reference r WHERE r.tenant_id = l.tenant_id AND r.repository = l.repository AND r.digest = l.digest)
         ORDER BY l.touched_at_ms LIMIT ?`,
        [nowMs - graceMs, limit],
      );
      for (const row of rows) {
        await tx.run("DELETE FROM registry_link WHERE tenant_id = ? AND repository = ? AND digest = ?", [
          row.tenant_id,
          row.repository,
          row.digest,
        ]);
      }
      return rows.length;
    });
  }

  /** From here on nobody finds these bytes; they may be deleted. Answers how many. */
  async beginRelease({ nowMs, graceMs }: Pick<SweepAges, "nowMs" | "graceMs">, limit: number): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      const rows = await tx.query<{ tenant_id: TenantId; digest: string }>(
        `SELECT b.tenant_id, b.digest FROM registry_blob b
         WHERE (b.state = 'arriving' OR (b.state = 'stored' AND b.touched_at_ms < ?)) AND b.held_until_ms < ?
           AND NOT EXISTS (SELECT 1 FROM registry_link l WHERE l.tenant_id = b.tenant_id AND l.digest = b.digest)
           AND NOT EXISTS (SELECT 1 FROM registry_manifest m WHERE m.tenant_id = b.tenant_id AND m.digest = b.digest)
           AND NOT EXISTS (SELECT 1 FROM registry_hold h WHERE h.tenant_id = b.tenant_id AND h.digest = b.digest)
         LIMIT ?`,
        [nowMs - graceMs, nowMs, limit],
      );
      for (const { tenant_id, digest } of rows) {
        await tx.run("UPDATE registry_blob SET state = 'releasing' WHERE tenant_id = ? AND digest = ?", [
          tenant_id,
          digest,
        ]);
      }
      return rows.length;
    });
  }

  async releasing(limit: number): Promise<Releasing[]> {
    const rows = await this.#sql.query<{ tenant_id: TenantId; digest: Sha256; asset_id: AssetId | "" }>(
      "SELECT tenant_id, digest, asset_id FROM registry_blob WHERE state = 'releasing' ORDER BY tenant_id, digest LIMIT ?",
      [limit],
    );
    return rows.map((row) => ({ tenantId: row.tenant_id, digest: row.digest, assetId: row.asset_id }));
  }

  async released({ tenantId, digest }: Releasing): Promise<void> {
    await this.#sql.run("DELETE FROM registry_blob WHERE tenant_id = ? AND digest = ? AND state = 'releasing'", [
      tenantId,
      digest,
    ]);
  }

  /** Forgets repositories that have been empty for the grace period. */
  async dropRepositories({ nowMs, graceMs }: SweepAges): Promise<void> {
    await this.#sql.run(
      `DELETE FROM registry_repository WHERE touched_at_ms < ?
         AND NOT EXISTS (SELECT 1 FROM registry_link l WHERE l.tenant_id = registry_repository.tenant_id AND l.repository = registry_repository.name)
         AND NOT EXISTS (SELECT 1 FROM registry_manifest m WHERE m.tenant_id = registry_repository.tenant_id AND m.repository = registry_repository.name)`,
      [nowMs - graceMs],
    );
  }
}
