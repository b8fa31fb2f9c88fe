import { type AssetId, ServiceError } from "@unkey/base";
import type { Sql, SqlValue } from "@unkey/sql";
import { type Asset, type AssetDeclaration, type Digest, type Owner, platform, type Quota } from "../domain/asset.ts";
import { stateAfter } from "../domain/asset-states.ts";
import type { AssetCatalog, AssetQuery, Usage } from "../ports.ts";
import { mustBeNoPart } from "./asset-parts.ts";
import {
  type AssetRow,
  findEqual,
  findOwned,
  findVisible,
  idsOfDigest,
  insertUploading,
  makeAvailable,
  mend,
  mustAttach,
  refresh,
  selectAssets,
  toAsset,
  usageOf,
} from "./asset-rows.ts";

export class SqlAssets implements AssetCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  add(declaration: AssetDeclaration, quota: Quota, nowMs: number, identity?: string): Promise<Asset> {
    const { digest, sizeBytes } = declaration;
    return this.#sql.transaction(async (tx) => {
      if (identity !== undefined) await mend(tx, { digest, identity }, nowMs);
      const known = await findEqual(tx, declaration, [], nowMs);
      if (known !== undefined) return refresh(tx, known, declaration.keep, nowMs);
      await mustAttach(tx, declaration, nowMs);
      const upload = await insertUploading(tx, declaration, sizeBytes, quota, nowMs);
      return makeAvailable(tx, upload, { digest, sizeBytes, identity }, nowMs);
    });
  }

  find(viewer: Owner, id: AssetId, nowMs: number): Promise<Asset | undefined> {
    return findVisible(this.#sql, viewer, id, nowMs);
  }

  async list(query: AssetQuery, nowMs: number): Promise<Asset[]> {
    const where: string[] = [];
    const params: SqlValue[] = [];
    const only = (condition: string, ...values: SqlValue[]) => {
      where.push(` AND ${condition}`);
      params.push(...values);
    };
    if (query.kind !== undefined) only("a.kind = ?", query.kind);
    if (query.name !== undefined) only("a.name = ?", query.name);
    if (query.version !== undefined) only("a.version = ?", query.version);
    if (query.digest !== undefined) only(`a.asset_id IN ${idsOfDigest}`, query.digest);
    if (query.attachedTo !== undefined) only("a.attached_to = ? AND a.attached_to <> ''", query.attachedTo);
    if (query.before !== undefined) only("a.asset_id < ?", query.before);
    for (const [name, value] of Object.entries(query.labels)) {
      only("EXISTS (SELECT 1 FROM json_each(a.labels) WHERE value ->> 0 = ? AND value ->> 1 = ?)", name, value);
    }
    // One owner at a time, so that the primary key gives the order and the limit ends the search.
    const newest = async (owner: Owner, more: string) => {
      const sql = `${selectAssets} WHERE a.tenant_id = ?${where.join("")}${more} ORDER BY a.asset_id DESC LIMIT ?`;
      return this.#sql.query<AssetRow>(sql, [nowMs, owner, ...params, query.limit]);
    };
    const rows = await newest(query.viewer, "");
    if (query.viewer !== platform) {
      rows.push(...(await newest(platform, " AND a.state <> 'uploading'")));
      rows.sort((a, b) => (a.asset_id < b.asset_id ? 1 : -1));
    }
    return rows.slice(0, query.limit).map(toAsset);
  }

  usage(owner: Owner): Promise<Usage> {
    return usageOf(this.#sql, owner);
  }

  async ownedSize(owner: Owner, digest: Digest): Promise<number | undefined> {
    const sql = `SELECT size_bytes FROM assets WHERE asset_id IN ${idsOfDigest} AND tenant_id = ? AND state = 'available' LIMIT 1`;
    return (await this.#sql.one<{ size_bytes: number }>(sql, [digest, owner]))?.size_bytes;
  }

  giveUp(owner: Owner, id: AssetId, nowMs: number): Promise<Asset> {
    return this.#sql.transaction(async (tx) => {
      // Another owner's asset, the platform's included, may be seen but not given up.
      const asset = await findOwned(tx, owner, id, nowMs);
      if (asset === undefined) {
        throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${id} of this tenant`);
      }
      const state = stateAfter(asset.state, "give_up");
      if (state === undefined) {
        throw new ServiceError(
          "ASSET_NOT_AVAILABLE",
          `asset ${id} is in state ${asset.state}: cancel the upload instead`,
        );
      }
      if (asset.leaseCount > 0) {
        throw new ServiceError("ASSET_IN_USE", `${asset.leaseCount} lease(s) hold asset ${id}`, {
          metadata: { leaseCount: String(asset.leaseCount) },
        });
      }
      await mustBeNoPart(tx, owner, id);
      const give =
        "UPDATE assets SET state = 'deleting', idle_since_ms = 0 WHERE tenant_id = ? AND state IN ('available', 'error')";
      await tx.run(`${give} AND asset_id = ?`, [owner, id]);
      // Bytes of an attachment's upload that still arrive are dropped when the row goes.
      await tx.run(`${give} AND attached_to = ? AND attached_to <> ''`, [owner, id]);
      return { ...asset, state };
    });
  }
}
