import type { AssetId } from "@unkey/base";
import type { SqlStatements } from "@unkey/sql";
import { type Asset, type AssetKind, type AssetState, type Digest, type Owner, platform } from "../domain/asset.ts";
import type { Usage } from "../ports.ts";

export interface AssetRow {
  readonly tenant_id: string;
  readonly asset_id: string;
  readonly name: string;
  readonly kind: string;
  readonly state: string;
  readonly digest: string;
  readonly size_bytes: number;
  readonly labels: string;
  readonly created_at_ms: number;
  readonly last_used_at_ms: number;
  readonly marked_by: number | null;
  readonly lease_count: number;
}

/** Selects assets with their living leases counted; binds the present instant first. */
export const selectAssets = `
  SELECT a.*, (
    SELECT COUNT(*) FROM lease_assets la
    JOIN leases l ON l.tenant_id = la.tenant_id AND l.lease_id = la.lease_id
    WHERE la.asset_id = a.asset_id AND l.expires_at_ms > ?
  ) AS lease_count
  FROM assets a`;

export async function findVisible(
  sql: SqlStatements,
  viewer: Owner,
  id: AssetId,
  nowMs: number,
): Promise<Asset | undefined> {
  const row = await sql.one<AssetRow>(`${selectAssets} WHERE a.tenant_id IN (?, ?) AND a.asset_id = ?`, [
    nowMs,
    viewer,
    platform,
    id,
  ]);
  return row === undefined ? undefined : toAsset(row);
}

export async function usageOf(sql: SqlStatements, owner: Owner): Promise<Usage> {
  const row = await sql.one<{ bytes: number; count: number }>(
    "SELECT COALESCE(SUM(size_bytes), 0) AS bytes, COUNT(*) AS count FROM assets WHERE tenant_id = ?",
    [owner],
  );
  return { storedBytes: row?.bytes ?? 0, assetCount: row?.count ?? 0 };
}

export function toAsset(row: AssetRow): Asset {
  return {
    id: row.asset_id as AssetId,
    owner: row.tenant_id as Owner,
    name: row.name,
    kind: row.kind as AssetKind,
    state: row.state as AssetState,
    digest: row.digest as Digest,
    sizeBytes: row.size_bytes,
    labels: Object.fromEntries(JSON.parse(row.labels) as [string, string][]),
    createdAtMs: row.created_at_ms,
    lastUsedAtMs: row.last_used_at_ms,
    leaseCount: row.lease_count,
    markedBy: row.marked_by ?? undefined,
  };
}
