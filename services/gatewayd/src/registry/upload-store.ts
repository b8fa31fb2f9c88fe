import { type AssetId, ServiceError, type TenantId } from "@unkey/base";
import type { Sql } from "@unkey/sql";
import type { Place } from "./blob-store.ts";

/** An upload under way. How many bytes have arrived is assetmanagerd's to say; the row's count is for the quota. */
export interface UploadRow extends Place {
  readonly uploadId: string;
  /** Empty until its first bytes. */
  readonly assetId: AssetId | "";
}

interface UploadColumns {
  tenant_id: TenantId;
  upload_id: string;
  repository: string;
  asset_id: AssetId | "";
}

export class UploadStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** Throws TOO_MANY_BLOB_UPLOADS when the tenant has `maxOpen` open. */
  async begin(place: Place, uploadId: string, nowMs: number, maxOpen: number): Promise<void> {
    const { tenantId, repository } = place;
    await this.#sql.transaction(async (tx) => {
      const open = await tx.one<{ count: number }>(
        "SELECT COUNT(*) AS count FROM registry_upload WHERE tenant_id = ?",
        [tenantId],
      );
      if ((open?.count ?? 0) >= maxOpen) {
        throw new ServiceError("TOO_MANY_BLOB_UPLOADS", `the tenant has ${maxOpen} uploads open`);
      }
      await tx.run(
        "INSERT INTO registry_upload (tenant_id, upload_id, repository, asset_id, received_bytes, touched_at_ms) VALUES (?, ?, ?, '', 0, ?)",
        [tenantId, uploadId, repository, nowMs],
      );
    });
  }

  /** Throws BLOB_UPLOAD_NOT_FOUND, also for an upload to another repository. */
  async get({ tenantId, repository }: Place, uploadId: string): Promise<UploadRow> {
    const row = await this.#sql.one<UploadColumns>(
      "SELECT tenant_id, upload_id, repository, asset_id FROM registry_upload WHERE tenant_id = ? AND upload_id = ? AND repository = ?",
      [tenantId, uploadId, repository],
    );
    if (row) return toUpload(row);
    throw uploadNotFound(repository, uploadId);
  }

  async setAsset({ tenantId, uploadId }: UploadRow, assetId: AssetId): Promise<void> {
    await this.#sql.run("UPDATE registry_upload SET asset_id = ? WHERE tenant_id = ? AND upload_id = ?", [
      assetId,
      tenantId,
      uploadId,
    ]);
  }

  async received({ tenantId, uploadId }: UploadRow, receivedBytes: number, nowMs: number): Promise<void> {
    await this.#sql.run(
      "UPDATE registry_upload SET received_bytes = ?, touched_at_ms = ? WHERE tenant_id = ? AND upload_id = ?",
      [receivedBytes, nowMs, tenantId, uploadId],
    );
  }

  async remove({ tenantId, uploadId }: UploadRow): Promise<void> {
    await this.#sql.run("DELETE FROM registry_upload WHERE tenant_id = ? AND upload_id = ?", [tenantId, uploadId]);
  }

  /** Uploads of all tenants that nobody has touched since. */
  async abandoned(beforeMs: number, limit: number): Promise<UploadRow[]> {
    const rows = await this.#sql.query<UploadColumns>(
      "SELECT tenant_id, upload_id, repository, asset_id FROM registry_upload WHERE touched_at_ms < ? ORDER BY touched_at_ms LIMIT ?",
      [beforeMs, limit],
    );
    return rows.map(toUpload);
  }
}

export function uploadNotFound(repository: string, uploadId: string): ServiceError {
  return new ServiceError(
    "BLOB_UPLOAD_NOT_FOUND",
    `${repository} has no upload ${JSON.stringify(uploadId.slice(0, 64))}`,
  );
}

function toUpload(row: UploadColumns): UploadRow {
  return {
    tenantId: row.tenant_id,
    repository: row.repository,
    uploadId: row.upload_id,
    assetId: row.asset_id,
  };
}
