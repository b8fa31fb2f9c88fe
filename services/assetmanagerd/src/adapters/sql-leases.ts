import { type AssetId, type LeaseId, newId, ServiceError } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import { type Asset, type Digest, type Lease, missingPart, type Owner } from "../domain/asset.ts";
import type { LeaseCatalog, LeaseWish, WholeContent } from "../ports.ts";
import { findOwned, findVisible, refresh } from "./asset-rows.ts";

interface LeaseRow {
  readonly tenant_id: Owner;
  readonly lease_id: LeaseId;
  readonly lease_key: string;
  readonly expires_at_ms: number;
}

/**
 * A lease waits for no disk: it must outlive this process, not a power failure, which ends the VM that it is for; whoever boots
 * that again prepares again. Were it gone while its assets are marked, a pass could come first and sweep them: so a lease that
 * takes assets back from collection is durable before it is answered. Otherwise it would take two more passes to lose them.
 */
const unsynced = { durability: "process" } as const;

export class SqlLeases implements LeaseCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async acquire(
    wish: LeaseWish,
  ): Promise<{ readonly lease: Lease; readonly contents: ReadonlyMap<AssetId, WholeContent> }> {
    const { tenantId, key, nowMs, expiresAtMs } = wish;
    const assetIds = [...new Set(wish.assetIds)];
    const { rescued, ...taken } = await this.#sql.transaction(async (tx) => {
      const held = await tx.one<LeaseRow>("SELECT * FROM leases WHERE tenant_id = ? AND lease_key = ?", [
        tenantId,
        key,
      ]);
      const living = held !== undefined && held.expires_at_ms > nowMs;
      if (held !== undefined && !living) await deleteLease(tx, tenantId, held.lease_id);
      const assets: Asset[] = [];
      for (const id of assetIds) {
        const asset = await findVisible(tx, tenantId, id, nowMs);
        if (asset === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${id}`);
        // What a living lease holds stays usable for it, even when its owner has given it up.
        const usable = asset.state === "available" || (asset.state === "deleting" && living);
        if (!usable || asset.digest === undefined) {
          throw new ServiceError("ASSET_NOT_AVAILABLE", `asset ${id} is in state ${asset.state}`);
        }
        const missing = missingPart(asset);
        if (missing !== undefined) {
          throw new ServiceError(
            "ASSET_NOT_AVAILABLE",
            `the part ${missing.id} of asset ${id} is in state ${missing.state}`,
            { metadata: { partId: missing.id } },
          );
        }
        assets.push(asset);
      }
      const lease = living
        ? await extendLease(tx, held, assetIds, expiresAtMs)
        : await insertLease(tx, { tenantId, key, assetIds, nowMs, expiresAtMs }, assets);
      const rescues = await anyMarked(tx, assets);
      for (const asset of assets) {
        await refresh(tx, asset, false, nowMs);
        for (const { id } of asset.parts) {
          const part = await findOwned(tx, asset.owner, id, nowMs);
          if (part !== undefined) await refresh(tx, part, false, nowMs);
        }
      }
      return { lease, contents: await contentsOf(tx, assets), rescued: rescues };
    }, unsynced);
    if (rescued) await this.#sql.settle();
    return taken;
  }

  renew(tenantId: Owner, id: LeaseId, nowMs: number, expiresAtMs: number): Promise<Lease | undefined> {
    return this.#sql.transaction(async (tx) => {
      const row = await tx.one<LeaseRow>(
        "SELECT * FROM leases WHERE tenant_id = ? AND lease_id = ? AND expires_at_ms > ?",
        [tenantId, id, nowMs],
      );
      return row === undefined ? undefined : extendLease(tx, row, await assetsOfLease(tx, row), expiresAtMs);
    }, unsynced);
  }

  async release(tenantId: Owner, id: LeaseId): Promise<void> {
    await this.#sql.transaction((tx) => deleteLease(tx, tenantId, id), unsynced);
  }

  async list(tenantId: Owner, assetId: AssetId | undefined, nowMs: number): Promise<Lease[]> {
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
}

/** True when a collection pass has marked one of these or of their parts. */
async function anyMarked(tx: SqlStatements, assets: readonly Asset[]): Promise<boolean> {
  const ids = assets.flatMap(({ id, parts }) => [id, ...parts.map((part) => part.id)]);
  const sql =
    "SELECT 1 AS found FROM assets WHERE marked_by IS NOT NULL AND asset_id IN (SELECT value FROM json_each(?)) LIMIT 1";
  return (await tx.one(sql, [JSON.stringify(ids)])) !== undefined;
}

async function contentsOf(tx: SqlStatements, assets: readonly Asset[]): Promise<ReadonlyMap<AssetId, WholeContent>> {
  const digests = assets.flatMap(({ digest, parts }) => [digest, ...parts.map((part) => part.digest)]);
  const rows = await tx.query<{ digest: Digest; identity: string | null }>(
    "SELECT digest, identity FROM blobs WHERE digest IN (SELECT value FROM json_each(?))",
    [JSON.stringify(digests)],
  );
  const identities = new Map(rows.map(({ digest, identity }) => [digest, identity ?? undefined]));
  const contents = new Map<AssetId, WholeContent>();
  for (const { id, digest, parts } of assets) {
    if (digest === undefined) continue;
    contents.set(id, {
      digest,
      identity: identities.get(digest),
      parts: parts.map((part) => ({ id: part.id, digest: part.digest, identity: identities.get(part.digest) })),
    });
  }
  return contents;
}

async function insertLease(tx: SqlStatements, wish: LeaseWish, assets: readonly Asset[]): Promise<Lease> {
  const { tenantId, key, assetIds, nowMs, expiresAtMs } = wish;
  const id = newId("lease", nowMs);
  await tx.run("INSERT INTO leases (tenant_id, lease_id, lease_key, expires_at_ms) VALUES (?, ?, ?, ?)", [
    tenantId,
    id,
    key,
    expiresAtMs,
  ]);
  // What an asset is attached to is held with it: both go together.
  const held = new Set(assets.flatMap((asset) => (asset.attachedTo === undefined ? [] : [asset.attachedTo])));
  for (const assetId of assetIds) held.delete(assetId);
  const insert = "INSERT INTO lease_assets (tenant_id, lease_id, asset_id, implied) VALUES (?, ?, ?, ?)";
  for (const assetId of assetIds) await tx.run(insert, [tenantId, id, assetId, 0]);
  for (const assetId of held) await tx.run(insert, [tenantId, id, assetId, 1]);
  return { id, tenantId, key, assetIds, expiresAtMs };
}

/** A lease never becomes shorter: a repeated request must not cut what its first form was given. */
async function extendLease(
  tx: SqlStatements,
  row: LeaseRow,
  assetIds: readonly AssetId[],
  expiresAtMs: number,
): Promise<Lease> {
  const held = await assetsOfLease(tx, row);
  if (held.length !== assetIds.length || !held.every((id) => assetIds.includes(id))) {
    throw new ServiceError("LEASE_KEY_REUSED", `the lease of key "${row.lease_key}" holds other assets`);
  }
  const untilMs = Math.max(row.expires_at_ms, expiresAtMs);
  await tx.run("UPDATE leases SET expires_at_ms = ? WHERE tenant_id = ? AND lease_id = ?", [
    untilMs,
    row.tenant_id,
    row.lease_id,
  ]);
  return toLease({ ...row, expires_at_ms: untilMs }, held);
}

async function deleteLease(sql: SqlStatements, tenantId: Owner, id: LeaseId): Promise<void> {
  await sql.run("DELETE FROM leases WHERE tenant_id = ? AND lease_id = ?", [tenantId, id]);
}

async function assetsOfLease(sql: SqlStatements, row: LeaseRow): Promise<AssetId[]> {
  const rows = await sql.query<{ asset_id: AssetId }>(
    "SELECT asset_id FROM lease_assets WHERE tenant_id = ? AND lease_id = ? AND implied = 0 ORDER BY asset_id",
    [row.tenant_id, row.lease_id],
  );
  return rows.map((held) => held.asset_id);
}

function toLease(row: LeaseRow, assetIds: readonly AssetId[]): Lease {
  return {
    id: row.lease_id,
    tenantId: row.tenant_id,
    key: row.lease_key,
    assetIds,
    expiresAtMs: row.expires_at_ms,
  };
}
