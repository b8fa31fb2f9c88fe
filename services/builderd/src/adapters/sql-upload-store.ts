import { ServiceError, type TenantId, type UploadId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import type { Upload, UploadStore } from "../ports.ts";

const buildsFrom = "SELECT 1 FROM build WHERE source_kind = 'upload' AND source = upload.upload_id";

export class SqlUploadStore implements UploadStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async add(upload: Upload, maxPerTenant: number): Promise<void> {
    const { tenantId, uploadId, name, digest, sizeBytes, expiresAtMs } = upload;
    const added = await this.#sql.run(
      `INSERT INTO upload (tenant_id, upload_id, name, digest, size_bytes, expires_at_ms)
       SELECT ?, ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM upload WHERE tenant_id = ?) < ?`,
      [tenantId, uploadId, name, digest, sizeBytes, expiresAtMs, tenantId, maxPerTenant],
    );
    if (added.changes === 0) {
      throw new ServiceError("UPLOAD_LIMIT_REACHED", `the tenant has ${maxPerTenant} uploads that have not expired`);
    }
  }

  async ids(): Promise<Set<string>> {
    const rows = await this.#sql.query<{ upload_id: string }>("SELECT upload_id FROM upload");
    return new Set(rows.map((row) => row.upload_id));
  }

  async expire(tenantId: TenantId, uploadId: UploadId): Promise<void> {
    await this.#sql.run("UPDATE upload SET expires_at_ms = 0 WHERE tenant_id = ? AND upload_id = ?", [
      tenantId,
      uploadId,
    ]);
  }

  async removeSpent(nowMs: number): Promise<UploadId[]> {
    const rows = await this.#sql.query<{ upload_id: UploadId }>(
      `DELETE FROM upload WHERE (expires_at_ms <= ? OR EXISTS (${buildsFrom})) AND NOT EXISTS (
         ${buildsFrom} AND state NOT IN ('completed', 'failed', 'cancelled'))
       RETURNING upload_id`,
      [nowMs],
    );
    return rows.map((row) => row.upload_id);
  }
}

/** Throws UPLOAD_NOT_FOUND when it is not there, another tenant's, or expired. */
export async function mustHoldUpload(
  sql: SqlStatements,
  tenantId: TenantId,
  uploadId: UploadId,
  nowMs: number,
): Promise<{ readonly name: string }> {
  const held = await sql.one<{ name: string }>(
    "SELECT name FROM upload WHERE tenant_id = ? AND upload_id = ? AND expires_at_ms > ?",
    [tenantId, uploadId, nowMs],
  );
  if (held === undefined) throw new ServiceError("UPLOAD_NOT_FOUND", `the tenant has no upload ${uploadId}`);
  return held;
}
