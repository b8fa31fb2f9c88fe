import { type AssetId, ServiceError, type TenantId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import type { Sha256 } from "./digest.ts";

/** Bytes of a tenant in assetmanagerd. */
export interface StoredBlob {
  readonly digest: Sha256;
  readonly assetId: AssetId;
  readonly sizeBytes: number;
}

interface BlobColumns {
  digest: Sha256;
  asset_id: AssetId;
  size_bytes: number;
}

/** One repository of one tenant. */
export interface Place {
  readonly tenantId: TenantId;
  readonly repository: string;
}

/** The bytes that a tenant pushed, and the repositories that show them. */
export class BlobStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** The blob, if the repository shows it. */
  async find({ tenantId, repository }: Place, digest: Sha256): Promise<StoredBlob | undefined> {
    const row = await this.#sql.one<BlobColumns>(
      `SELECT b.digest, b.asset_id, b.size_bytes FROM registry_link l
       JOIN registry_blob b ON b.tenant_id = l.tenant_id AND b.digest = l.digest
       WHERE l.tenant_id = ? AND l.repository = ? AND l.digest = ? AND b.state = 'stored'`,
      [tenantId, repository, digest],
    );
    return row && toBlob(row);
  }

  /** A client that was told that the blob is there relies on it: its age begins anew. */
  async touch({ tenantId, repository }: Place, digest: Sha256, nowMs: number, olderThanMs: number): Promise<void> {
    await this.#sql.run(
      "UPDATE registry_link SET touched_at_ms = ? WHERE tenant_id = ? AND repository = ? AND digest = ? AND touched_at_ms < ?",
      [nowMs, tenantId, repository, digest, olderThanMs],
    );
  }

  /**
   * Shows a blob of `from`, or of any repository of the tenant, in another one; false when there is none. Tenants do not
   * meet here: a digest that only another one has does not exist.
   */
  async mount(to: Place, from: string | undefined, digest: Sha256, nowMs: number): Promise<boolean> {
    return this.#sql.transaction(async (tx) => {
      const found = await tx.one(
        `SELECT 1 AS found FROM registry_link l JOIN registry_blob b ON b.tenant_id = l.tenant_id AND b.digest = l.digest
         WHERE l.tenant_id = ? AND l.digest = ? AND b.state = 'stored' ${from === undefined ? "" : "AND l.repository = ?"} LIMIT 1`,
        [to.tenantId, digest, ...(from === undefined ? [] : [from])],
      );
      if (!found) return false;
      await linkBlob(tx, to, digest, nowMs);
      return true;
    });
  }

  /** Bytes that the tenant has stored or is sending. */
  async usedBytes(tenantId: TenantId): Promise<number> {
    return usedBytes(this.#sql, tenantId);
  }

  /**
   * Announces that bytes are about to be stored: until `heldUntilMs` no sweep releases an equal blob that is there
   * already, and after it a sweep finds what a crash left. False while an equal one is being released: ask again. Throws
   * REGISTRY_QUOTA_EXCEEDED.
   */
  async announce(options: {
    readonly tenantId: TenantId;
    readonly digest: Sha256;
    readonly sizeBytes: number;
    readonly quotaBytes: number;
    /** The upload that brings them; from here on they count as the blob's. */
    readonly uploadId: string;
    readonly nowMs: number;
    readonly heldUntilMs: number;
  }): Promise<boolean> {
    const { tenantId, digest, sizeBytes, quotaBytes, uploadId, nowMs, heldUntilMs } = options;
    return this.#sql.transaction(async (tx) => {
      await tx.run("UPDATE registry_upload SET received_bytes = 0 WHERE tenant_id = ? AND upload_id = ?", [
        tenantId,
        uploadId,
      ]);
      const known = await tx.one<{ state: string }>(
        "SELECT state FROM registry_blob WHERE tenant_id = ? AND digest = ?",
        [tenantId, digest],
      );
      if (known?.state === "releasing") return false;
      if (known) {
        await tx.run(
          "UPDATE registry_blob SET touched_at_ms = ?, held_until_ms = ? WHERE tenant_id = ? AND digest = ?",
          [nowMs, heldUntilMs, tenantId, digest],
        );
        return true;
      }
      const usedBefore = await usedBytes(tx, tenantId);
      if (usedBefore + sizeBytes > quotaBytes) throw quotaExceeded(usedBefore, quotaBytes);
      await tx.run(
        "INSERT INTO registry_blob (tenant_id, digest, state, asset_id, size_bytes, touched_at_ms, held_until_ms) VALUES (?, ?, 'arriving', '', ?, ?, ?)",
        [tenantId, digest, sizeBytes, nowMs, heldUntilMs],
      );
      return true;
    });
  }

  /** The bytes of a tenant by their digest, shown by a repository or not. */
  async stored(tenantId: TenantId, digest: Sha256): Promise<StoredBlob | undefined> {
    const row = await this.#sql.one<BlobColumns>(
      "SELECT digest, asset_id, size_bytes FROM registry_blob WHERE tenant_id = ? AND digest = ? AND state = 'stored'",
      [tenantId, digest],
    );
    return row && toBlob(row);
  }

  /** The bytes are stored: the repository shows them, and the upload that brought them is over. */
  async commit(place: Place, blob: StoredBlob, uploadId: string, nowMs: number): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      await saveBlob(tx, place.tenantId, blob, nowMs);
      await linkBlob(tx, place, blob.digest, nowMs);
      await tx.run("DELETE FROM registry_upload WHERE tenant_id = ? AND upload_id = ?", [place.tenantId, uploadId]);
    });
  }

  /** Takes a blob out of the repository. Throws BLOB_NOT_FOUND, and BLOB_IN_USE while a manifest there refers to it. */
  async unlink({ tenantId, repository }: Place, digest: Sha256): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      const user = await tx.one<{ manifest_digest: string }>(
        "SELECT manifest_digest FROM registry_reference WHERE tenant_id = ? AND repository = ? AND digest = ? LIMIT 1",
        [tenantId, repository, digest],
      );
      const linked = await tx.one(
        "SELECT 1 AS found FROM registry_link WHERE tenant_id = ? AND repository = ? AND digest = ?",
        [tenantId, repository, digest],
      );
      if (!linked) throw blobNotFound(repository, digest);
      if (user) {
        throw new ServiceError("BLOB_IN_USE", `the manifest ${user.manifest_digest} in ${repository} refers to it`);
      }
      await tx.run("DELETE FROM registry_link WHERE tenant_id = ? AND repository = ? AND digest = ?", [
        tenantId,
        repository,
        digest,
      ]);
      await expireBlob(tx, tenantId, digest);
    });
  }
}

export function blobNotFound(repository: string, digest: string): ServiceError {
  return new ServiceError("BLOB_NOT_FOUND", `${repository} has no blob ${digest.slice(0, 80)}`);
}

export function quotaExceeded(usedBytes: number, quotaBytes: number): ServiceError {
  return new ServiceError("REGISTRY_QUOTA_EXCEEDED", `${usedBytes} of ${quotaBytes} bytes for images are in use`, {
    metadata: { usedBytes: String(usedBytes), quotaBytes: String(quotaBytes) },
  });
}

export async function saveBlob(tx: SqlStatements, tenantId: TenantId, blob: StoredBlob, nowMs: number): Promise<void> {
  const { digest, assetId, sizeBytes } = blob;
  await tx.run(
    `INSERT INTO registry_blob (tenant_id, digest, state, asset_id, size_bytes, touched_at_ms, held_until_ms)
     VALUES (?, ?, 'stored', ?, ?, ?, 0)
     ON CONFLICT (tenant_id, digest) DO UPDATE SET state = 'stored', asset_id = excluded.asset_id,
       size_bytes = excluded.size_bytes, touched_at_ms = excluded.touched_at_ms, held_until_ms = 0`,
    [tenantId, digest, assetId, sizeBytes, nowMs],
  );
}

/** A repository begins with the first thing in it. */
export async function ensureRepository(
  tx: SqlStatements,
  { tenantId, repository }: Place,
  nowMs: number,
): Promise<void> {
  await tx.run(
    `INSERT INTO registry_repository (tenant_id, name, touched_at_ms) VALUES (?, ?, ?)
     ON CONFLICT (tenant_id, name) DO UPDATE SET touched_at_ms = excluded.touched_at_ms`,
    [tenantId, repository, nowMs],
  );
}

/** Lets the next sweep release the bytes, unless somebody else needs them. */
export async function expireBlob(tx: SqlStatements, tenantId: TenantId, digest: string): Promise<void> {
  await tx.run("UPDATE registry_blob SET touched_at_ms = 0 WHERE tenant_id = ? AND digest = ?", [tenantId, digest]);
}

async function linkBlob(tx: SqlStatements, place: Place, digest: Sha256, nowMs: number): Promise<void> {
  await ensureRepository(tx, place, nowMs);
  await tx.run(
    `INSERT INTO registry_link (tenant_id, repository, digest, touched_at_ms) VALUES (?, ?, ?, ?)
     ON CONFLICT (tenant_id, repository, digest) DO UPDATE SET touched_at_ms = excluded.touched_at_ms`,
    [place.tenantId, place.repository, digest, nowMs],
  );
}

async function usedBytes(sql: SqlStatements, tenantId: TenantId): Promise<number> {
  const row = await sql.one<{ bytes: number }>(
    `SELECT (SELECT COALESCE(SUM(size_bytes), 0) FROM registry_blob WHERE tenant_id = ?)
          + (SELECT COALESCE(SUM(received_bytes), 0) FROM registry_upload WHERE tenant_id = ?) AS bytes`,
    [tenantId, tenantId],
  );
  return row?.bytes ?? 0;
}

function toBlob(row: BlobColumns): StoredBlob {
  return { digest: row.digest, assetId: row.asset_id, sizeBytes: row.size_bytes };
}
