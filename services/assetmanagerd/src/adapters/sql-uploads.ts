import { type AssetId, ServiceError } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import { type Asset, canonicalLabels, type Digest, missingPart, type Owner, type Quota } from "../domain/asset.ts";
import type { UploadCatalog, UploadWish } from "../ports.ts";
import { insertParts } from "./asset-parts.ts";
import {
  count,
  findEqual,
  findOwned,
  insertUploading,
  makeAvailable,
  mend,
  mustAttach,
  refresh,
} from "./asset-rows.ts";

/** An owner's uploads at one time: what is begun and never sent must not pile up. */
const maxOpenUploads = 1000;

interface UploadRow {
  readonly tenant_id: Owner;
  readonly asset_id: AssetId;
  readonly became_id: AssetId | null;
  /** JSON, as they were declared. */
  readonly part_ids: string;
}

export class SqlUploads implements UploadCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  begin(wish: UploadWish, quota: Quota, nowMs: number): Promise<Asset> {
    const { owner, key } = wish;
    const partIds = JSON.stringify(wish.partIds);
    return this.#sql.transaction(async (tx) => {
      const known = key === "" ? undefined : await uploadOfKey(tx, owner, key);
      const asset = known && (await findOwned(tx, owner, known.became_id ?? known.asset_id, nowMs));
      if (known !== undefined && asset !== undefined && isOfUse(asset)) {
        if (!isSame(asset, wish) || known.part_ids !== partIds) {
          throw new ServiceError("UPLOAD_KEY_REUSED", "the upload key already names an upload of something else");
        }
        return asset;
      }
      await tx.run("DELETE FROM uploads WHERE tenant_id = ? AND upload_key = ? AND upload_key <> ''", [owner, key]);
      await mustAttach(tx, wish, nowMs);
      const open = await tx.one<{ n: number }>(
        "SELECT COUNT(*) AS n FROM uploads WHERE tenant_id = ? AND became_id IS NULL",
        [owner],
      );
      if ((open?.n ?? 0) >= maxOpenUploads) {
        throw new ServiceError("UPLOAD_LIMIT_REACHED", `${maxOpenUploads} uploads are open`);
      }
      const begun = await insertUploading(tx, wish, wish.reserveBytes, quota, nowMs);
      await insertParts(tx, begun, wish.partIds, nowMs);
      await tx.run(
        "INSERT INTO uploads (tenant_id, asset_id, upload_key, part_ids, touched_at_ms) VALUES (?, ?, ?, ?, ?)",
        [owner, begun.id, key, partIds, nowMs],
      );
      return wish.partIds.length === 0 ? begun : ((await findOwned(tx, owner, begun.id, nowMs)) ?? begun);
    });
  }

  async find(owner: Owner, id: AssetId, nowMs: number): Promise<Asset> {
    const row = await this.#sql.one<UploadRow>("SELECT * FROM uploads WHERE tenant_id = ? AND asset_id = ?", [
      owner,
      id,
    ]);
    const asset = await findOwned(this.#sql, owner, row?.became_id ?? id, nowMs);
    if (asset === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no upload ${id}`);
    return asset;
  }

  async reserve(owner: Owner, id: AssetId, bytes: number, quota: Quota): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      await setCounted(tx, owner, id, bytes, quota);
    });
  }

  async note(owner: Owner, id: AssetId, receivedBytes: number, reservedBytes: number, nowMs: number): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      if (!(await setCounted(tx, owner, id, reservedBytes))) return;
      await tx.run("UPDATE assets SET received_bytes = ? WHERE tenant_id = ? AND asset_id = ?", [
        receivedBytes,
        owner,
        id,
      ]);
      await tx.run("UPDATE uploads SET touched_at_ms = ? WHERE tenant_id = ? AND asset_id = ?", [nowMs, owner, id]);
    });
  }

  finish(
    owner: Owner,
    id: AssetId,
    stored: { readonly digest: Digest; readonly sizeBytes: number; readonly identity: string },
    nowMs: number,
  ): Promise<Asset> {
    return this.#sql.transaction(async (tx) => {
      const upload = await findOwned(tx, owner, id, nowMs);
      if (upload?.state !== "uploading") throw new ServiceError("ASSET_NOT_FOUND", `there is no upload ${id}`);
      await mend(tx, stored, nowMs);
      const known = await findEqual(tx, { ...upload, ...stored }, upload.parts, nowMs);
      let asset: Asset;
      if (known === undefined) {
        await mustAttach(tx, upload, nowMs);
        await setCounted(tx, owner, id, stored.sizeBytes);
        asset = await makeAvailable(tx, upload, stored, nowMs);
      } else {
        asset = await refresh(tx, known, upload.keep, nowMs);
        await dropUploading(tx, owner, id);
      }
      await tx.run(
        "UPDATE uploads SET became_id = ?, touched_at_ms = ? WHERE tenant_id = ? AND asset_id = ? AND upload_key <> ''",
        [asset.id, nowMs, owner, id],
      );
      await tx.run("DELETE FROM uploads WHERE tenant_id = ? AND asset_id = ? AND upload_key = ''", [owner, id]);
      return asset;
    });
  }

  cancel(owner: Owner, id: AssetId): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      const bytes = await dropUploading(tx, owner, id);
      if (bytes === undefined) return 0;
      await tx.run("DELETE FROM uploads WHERE tenant_id = ? AND asset_id = ?", [owner, id]);
      return bytes;
    });
  }

  async idleSince(
    instantMs: number,
  ): Promise<{ readonly owner: Owner; readonly id: AssetId; readonly bytes: number }[]> {
    const rows = await this.#sql.query<UploadRow & { received_bytes: number }>(
      `SELECT u.*, a.received_bytes FROM uploads u JOIN assets a ON a.tenant_id = u.tenant_id AND a.asset_id = u.asset_id
       WHERE u.touched_at_ms < ? AND a.state = 'uploading' ORDER BY u.asset_id LIMIT 1000`,
      [instantMs],
    );
    return rows.map((row) => ({ owner: row.tenant_id, id: row.asset_id, bytes: row.received_bytes }));
  }

  async forgetFinished(instantMs: number): Promise<void> {
    await this.#sql.run("DELETE FROM uploads WHERE touched_at_ms < ? AND became_id IS NOT NULL", [instantMs]);
  }

  async recover(): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      const rows = await tx.query<{ tenant_id: Owner; asset_id: AssetId; received_bytes: number; upload_key: string }>(
        `SELECT u.tenant_id, u.asset_id, u.upload_key, a.received_bytes
         FROM uploads u JOIN assets a ON a.tenant_id = u.tenant_id AND a.asset_id = u.asset_id WHERE a.state = 'uploading'`,
      );
      for (const row of rows) {
        if (row.upload_key !== "") {
          await setCounted(tx, row.tenant_id, row.asset_id, row.received_bytes);
          continue;
        }
        await dropUploading(tx, row.tenant_id, row.asset_id);
        await tx.run("DELETE FROM uploads WHERE tenant_id = ? AND asset_id = ?", [row.tenant_id, row.asset_id]);
      }
    });
  }

  async isUploading(id: AssetId): Promise<boolean> {
    const sql = "SELECT 1 AS found FROM assets WHERE asset_id = ? AND state = 'uploading'";
    return (await this.#sql.one(sql, [id])) !== undefined;
  }
}

function uploadOfKey(tx: SqlStatements, owner: Owner, key: string): Promise<UploadRow | undefined> {
  return tx.one<UploadRow>("SELECT * FROM uploads WHERE tenant_id = ? AND upload_key = ? AND upload_key <> ''", [
    owner,
    key,
  ]);
}

/** What a key names can be gone on with, or used. */
function isOfUse(asset: Asset): boolean {
  return asset.state === "uploading" || (asset.state === "available" && missingPart(asset) === undefined);
}

function isSame(asset: Asset, wish: UploadWish): boolean {
  return (
    asset.name === wish.name &&
    asset.kind === wish.kind &&
    asset.attachedTo === wish.attachedTo &&
    canonicalLabels(asset.labels) === canonicalLabels(wish.labels)
  );
}

/** Counts `bytes` for an upload instead of what was counted before; false when there is none. */
async function setCounted(
  tx: SqlStatements,
  owner: Owner,
  id: AssetId,
  bytes: number,
  quota?: Quota,
): Promise<boolean> {
  const row = await tx.one<{ size_bytes: number }>(
    "SELECT size_bytes FROM assets WHERE tenant_id = ? AND asset_id = ? AND state = 'uploading'",
    [owner, id],
  );
  if (row === undefined) return false;
  if (row.size_bytes === bytes) return true;
  await count(tx, owner, { bytes: bytes - row.size_bytes, assets: 0 }, quota);
  await tx.run("UPDATE assets SET size_bytes = ? WHERE tenant_id = ? AND asset_id = ?", [bytes, owner, id]);
  return true;
}

/** Answers the bytes that had arrived, or undefined when there is no such upload. */
async function dropUploading(tx: SqlStatements, owner: Owner, id: AssetId): Promise<number | undefined> {
  const row = await tx.one<{ size_bytes: number; received_bytes: number }>(
    "DELETE FROM assets WHERE tenant_id = ? AND asset_id = ? AND state = 'uploading' RETURNING size_bytes, received_bytes",
    [owner, id],
  );
  if (row === undefined) return undefined;
  await count(tx, owner, { bytes: -row.size_bytes, assets: -1 });
  return row.received_bytes;
}
