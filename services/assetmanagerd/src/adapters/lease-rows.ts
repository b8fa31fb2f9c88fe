import { type AssetId, type LeaseId, newId, ServiceError } from "@unkey/base";
import type { SqlStatements } from "@unkey/sql";
import type { Lease, Owner } from "../domain/asset.ts";
import type { LeaseWish } from "../ports.ts";

export interface LeaseRow {
  readonly tenant_id: string;
  readonly lease_id: string;
  readonly lease_key: string;
  readonly expires_at_ms: number;
}

export async function insertLease(tx: SqlStatements, wish: LeaseWish): Promise<Lease> {
  const { tenantId, key, assetIds, nowMs, expiresAtMs } = wish;
  const id = newId("lease", nowMs);
  await tx.run("INSERT INTO leases (tenant_id, lease_id, lease_key, expires_at_ms) VALUES (?, ?, ?, ?)", [
    tenantId,
    id,
    key,
    expiresAtMs,
  ]);
  for (const assetId of assetIds) {
    await tx.run("INSERT INTO lease_assets (tenant_id, lease_id, asset_id) VALUES (?, ?, ?)", [tenantId, id, assetId]);
  }
  return { id, tenantId, key, assetIds, expiresAtMs };
}

/** A lease never becomes shorter: a repeated request must not cut what its first form was given. */
export async function extendLease(
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

export async function deleteLease(tx: SqlStatements, row: LeaseRow): Promise<void> {
  await tx.run("DELETE FROM leases WHERE tenant_id = ? AND lease_id = ?", [row.tenant_id, row.lease_id]);
}

export async function assetsOfLease(sql: SqlStatements, row: LeaseRow): Promise<AssetId[]> {
  const rows = await sql.query<{ asset_id: AssetId }>(
    "SELECT asset_id FROM lease_assets WHERE tenant_id = ? AND lease_id = ? ORDER BY asset_id",
    [row.tenant_id, row.lease_id],
  );
  return rows.map((held) => held.asset_id);
}

export function toLease(row: LeaseRow, assetIds: readonly AssetId[]): Lease {
  return {
    id: row.lease_id as LeaseId,
    tenantId: row.tenant_id as Owner,
    key: row.lease_key,
    assetIds,
    expiresAtMs: row.expires_at_ms,
  };
}
