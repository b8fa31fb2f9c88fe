import { type AssetId, type LeaseId, newId, ServiceError } from "@unkey/base";
import { openSqlite, type Sql, type SqlValue } from "@unkey/sql";
import {
  type Asset,
  type AssetDeclaration,
  type CollectionRules,
  canonicalLabels,
  type Digest,
  type Lease,
  type Owner,
  platform,
  toSweep,
} from "../domain/asset.ts";
import type { AssetCatalog, AssetQuery, LeaseWish, Usage } from "../ports.ts";
import { type AssetRow, findVisible, selectAssets, toAsset, usageOf } from "./asset-rows.ts";
import { assetsOfLease, deleteLease, extendLease, insertLease, type LeaseRow, toLease } from "./lease-rows.ts";
import { migrations } from "./schema.ts";

/** Bounds the memory of one pass; what is left over waits for the next. */
const maxCandidates = 10_000;

export class SqlAssetCatalog implements AssetCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  static async open(path: string): Promise<SqlAssetCatalog> {
    return new SqlAssetCatalog(await openSqlite({ path, migrations }));
  }

  add(declaration: AssetDeclaration, nowMs: number, quotaBytes: number): Promise<Asset> {
    const { owner, name, kind, digest, sizeBytes } = declaration;
    const labels = canonicalLabels(declaration.labels);
    return this.#sql.transaction(async (tx) => {
      const known = await tx.one<AssetRow>(
        `${selectAssets} WHERE a.tenant_id = ? AND a.digest = ? AND a.kind = ? AND a.name = ? AND a.labels = ? AND a.state = 'available'`,
        [nowMs, owner, digest, kind, name, labels],
      );
      if (known !== undefined) {
        // Whoever uploads it again means to use it.
        await tx.run("UPDATE assets SET marked_by = NULL, last_used_at_ms = ? WHERE tenant_id = ? AND asset_id = ?", [
          nowMs,
          owner,
          known.asset_id,
        ]);
        return { ...toAsset(known), markedBy: undefined, lastUsedAtMs: nowMs };
      }
      const { storedBytes } = await usageOf(tx, owner);
      if (quotaBytes > 0 && storedBytes + sizeBytes > quotaBytes) {
        throw new ServiceError("ASSET_QUOTA_EXCEEDED", `${storedBytes} of ${quotaBytes} bytes are in use`, {
          metadata: { storedBytes: String(storedBytes), quotaBytes: String(quotaBytes) },
        });
      }
      const id = newId("asset", nowMs);
      await tx.run(
        `INSERT INTO assets (tenant_id, asset_id, name, kind, state, digest, size_bytes, labels, created_at_ms, last_used_at_ms)
         VALUES (?, ?, ?, ?, 'available', ?, ?, ?, ?, ?)`,
        [owner, id, name, kind, digest, sizeBytes, labels, nowMs, nowMs],
      );
      for (const [label, value] of Object.entries(declaration.labels)) {
        await tx.run("INSERT INTO asset_labels (tenant_id, asset_id, name, value) VALUES (?, ?, ?, ?)", [
          owner,
          id,
          label,
          value,
        ]);
      }
      return {
        ...declaration,
        id,
        state: "available",
        createdAtMs: nowMs,
        lastUsedAtMs: nowMs,
        leaseCount: 0,
        markedBy: undefined,
      };
    });
  }

  find(viewer: Owner, id: AssetId, nowMs: number): Promise<Asset | undefined> {
    return findVisible(this.#sql, viewer, id, nowMs);
  }

  async list(query: AssetQuery, nowMs: number): Promise<Asset[]> {
    const where = ["a.tenant_id IN (?, ?)"];
    const params: SqlValue[] = [nowMs, query.viewer, platform];
    if (query.kind !== undefined) {
      where.push("a.kind = ?");
      params.push(query.kind);
    }
    if (query.before !== undefined) {
      where.push("a.asset_id < ?");
      params.push(query.before);
    }
    for (const [name, value] of Object.entries(query.labels)) {
      where.push(
        "EXISTS (SELECT 1 FROM asset_labels al WHERE al.tenant_id = a.tenant_id AND al.asset_id = a.asset_id AND al.name = ? AND al.value = ?)",
      );
      params.push(name, value);
    }
    const sql = `${selectAssets} WHERE ${where.join(" AND ")} ORDER BY a.asset_id DESC LIMIT ?`;
    return (await this.#sql.query<AssetRow>(sql, [...params, query.limit])).map(toAsset);
  }

  usage(owner: Owner): Promise<Usage> {
    return usageOf(this.#sql, owner);
  }

  async owns(owner: Owner, digest: Digest): Promise<boolean> {
    const sql = "SELECT 1 AS found FROM assets WHERE tenant_id = ? AND digest = ? AND state = 'available' LIMIT 1";
    return (await this.#sql.one(sql, [owner, digest])) !== undefined;
  }

  acquireLease(wish: LeaseWish): Promise<{ readonly lease: Lease; readonly assets: readonly Asset[] }> {
    const { tenantId, key, nowMs, expiresAtMs } = wish;
    const assetIds = [...new Set(wish.assetIds)];
    return this.#sql.transaction(async (tx) => {
      const held = await tx.one<LeaseRow>("SELECT * FROM leases WHERE tenant_id = ? AND lease_key = ?", [
        tenantId,
        key,
      ]);
      const living = held !== undefined && held.expires_at_ms > nowMs;
      if (held !== undefined && !living) await deleteLease(tx, held);
      const assets: Asset[] = [];
      for (const id of assetIds) {
        const asset = await findVisible(tx, tenantId, id, nowMs);
        if (asset === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${id}`);
        // What a living lease holds stays usable for it, even when its owner has given it up.
        if (asset.state === "error" || (asset.state === "deleting" && !living)) {
          throw new ServiceError("ASSET_NOT_AVAILABLE", `asset ${id} is in state ${asset.state}`);
        }
        assets.push(asset);
      }
      const lease = living
        ? await extendLease(tx, held, assetIds, expiresAtMs)
        : await insertLease(tx, { tenantId, key, assetIds, nowMs, expiresAtMs });
      for (const { owner, id } of assets) {
        await tx.run("UPDATE assets SET last_used_at_ms = ?, marked_by = NULL WHERE tenant_id = ? AND asset_id = ?", [
          nowMs,
          owner,
          id,
        ]);
      }
      return { lease, assets };
    });
  }

  renewLease(tenantId: Owner, id: LeaseId, nowMs: number, expiresAtMs: number): Promise<Lease | undefined> {
    return this.#sql.transaction(async (tx) => {
      const row = await tx.one<LeaseRow>(
        "SELECT * FROM leases WHERE tenant_id = ? AND lease_id = ? AND expires_at_ms > ?",
        [tenantId, id, nowMs],
      );
      return row === undefined ? undefined : extendLease(tx, row, await assetsOfLease(tx, row), expiresAtMs);
    });
  }

  async releaseLease(tenantId: Owner, id: LeaseId): Promise<void> {
    await this.#sql.run("DELETE FROM leases WHERE tenant_id = ? AND lease_id = ?", [tenantId, id]);
  }

  async leases(tenantId: Owner, assetId: AssetId | undefined, nowMs: number): Promise<Lease[]> {
    const holding =
      "AND EXISTS (SELECT 1 FROM lease_assets la WHERE la.tenant_id = l.tenant_id AND la.lease_id = l.lease_id AND la.asset_id = ?)";
    const rows = await this.#sql.query<LeaseRow>(
      `SELECT l.* FROM leases l WHERE l.tenant_id = ? AND l.expires_at_ms > ? ${assetId === undefined ? "" : holding} ORDER BY l.lease_id`,
      [tenantId, nowMs, ...(assetId === undefined ? [] : [assetId])],
    );
    const leases: Lease[] = [];
    for (const row of rows) leases.push(toLease(row, await assetsOfLease(this.#sql, row)));
    return leases;
  }

  beginDelete(owner: Owner, id: AssetId, nowMs: number): Promise<Asset> {
    return this.#sql.transaction(async (tx) => {
      const asset = await findVisible(tx, owner, id, nowMs);
      // Another owner's asset, the platform's included, may be seen but not given up.
      if (asset === undefined || asset.owner !== owner) {
        throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${id} of this tenant`);
      }
      if (asset.leaseCount > 0) {
        throw new ServiceError("ASSET_IN_USE", `${asset.leaseCount} lease(s) hold asset ${id}`, {
          metadata: { leaseCount: String(asset.leaseCount) },
        });
      }
      await tx.run("UPDATE assets SET state = 'deleting' WHERE tenant_id = ? AND asset_id = ?", [owner, id]);
      return { ...asset, state: "deleting" };
    });
  }

  async markCorrupt(digest: Digest): Promise<number> {
    const sql = "UPDATE assets SET state = 'error' WHERE digest = ? AND state = 'available'";
    return (await this.#sql.run(sql, [digest])).changes;
  }

  async digests(): Promise<ReadonlyMap<Digest, number>> {
    const rows = await this.#sql.query<{ digest: Digest; size_bytes: number }>(
      "SELECT DISTINCT digest, size_bytes FROM assets WHERE state = 'available'",
    );
    return new Map(rows.map((row) => [row.digest, row.size_bytes]));
  }

  async isReferenced(digest: Digest): Promise<boolean> {
    return (await this.#sql.one("SELECT 1 AS found FROM assets WHERE digest = ? LIMIT 1", [digest])) !== undefined;
  }

  beginPass(nowMs: number): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      await tx.run("DELETE FROM leases WHERE expires_at_ms <= ?", [nowMs]);
      const row = await tx.one<{ pass: number }>("UPDATE collection SET pass = pass + 1 WHERE id = 1 RETURNING pass");
      if (row === undefined) throw new Error("the collection counter is missing");
      return row.pass;
    });
  }

  async candidates({ nowMs, graceMs }: CollectionRules): Promise<Asset[]> {
    const rows = await this.#sql.query<AssetRow>(
      `${selectAssets} WHERE a.marked_by IS NOT NULL OR a.state = 'deleting' OR a.last_used_at_ms < ? ORDER BY a.asset_id LIMIT ?`,
      [nowMs, nowMs - graceMs, maxCandidates],
    );
    return rows.map(toAsset);
  }

  async mark(ids: readonly AssetId[], pass: number): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      for (const id of ids) await tx.run("UPDATE assets SET marked_by = ? WHERE asset_id = ?", [pass, id]);
    });
  }

  remove(id: AssetId, rules: CollectionRules): Promise<boolean> {
    return this.#sql.transaction(async (tx) => {
      const row = await tx.one<AssetRow>(`${selectAssets} WHERE a.asset_id = ?`, [rules.nowMs, id]);
      // Decided again inside the transaction: a lease may have arrived since the pass looked.
      if (row === undefined || toSweep([toAsset(row)], rules).length === 0) return false;
      await tx.run("DELETE FROM assets WHERE asset_id = ?", [id]);
      return true;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sql[Symbol.asyncDispose]();
  }
}
