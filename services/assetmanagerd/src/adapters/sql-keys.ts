import type { Sql } from "@unkey/sql";
import type { Digest, Owner } from "../domain/asset.ts";
import type { KeyCatalog, WrappedBlobKey } from "../ports.ts";

interface BlobKeyRow {
  readonly tenant_id: Owner;
  readonly wrapped: Uint8Array;
}

export class SqlKeys implements KeyCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  tenantKey(owner: Owner, fresh: Uint8Array): Promise<Uint8Array> {
    return this.#sql.transaction(async (tx) => {
      await tx.run("INSERT INTO tenant_keys (tenant_id, wrapped) VALUES (?, ?) ON CONFLICT DO NOTHING", [owner, fresh]);
      const sql = "SELECT wrapped FROM tenant_keys WHERE tenant_id = ?";
      return (await tx.one<{ wrapped: Uint8Array }>(sql, [owner]))?.wrapped ?? fresh;
    });
  }

  addBlobKey(digest: Digest, fresh: WrappedBlobKey): Promise<WrappedBlobKey> {
    return this.#sql.transaction(async (tx) => {
      const sql = "INSERT INTO blob_keys (digest, tenant_id, wrapped) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
      await tx.run(sql, [digest, fresh.owner, fresh.wrapped]);
      const row = await tx.one<BlobKeyRow>("SELECT tenant_id, wrapped FROM blob_keys WHERE digest = ?", [digest]);
      return row === undefined ? fresh : { owner: row.tenant_id, wrapped: row.wrapped };
    });
  }

  async blobKey(digest: Digest): Promise<WrappedBlobKey | undefined> {
    const sql = "SELECT tenant_id, wrapped FROM blob_keys WHERE digest = ?";
    const row = await this.#sql.one<BlobKeyRow>(sql, [digest]);
    return row && { owner: row.tenant_id, wrapped: row.wrapped };
  }

  async forgetBlobKeys(digests: readonly Digest[]): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      for (const digest of digests) await tx.run("DELETE FROM blob_keys WHERE digest = ?", [digest]);
    });
  }
}
