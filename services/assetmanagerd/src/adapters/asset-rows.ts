import { type AssetId, newId, ServiceError } from "@unkey/base";
import type { SqlStatements } from "@unkey/sql";
import {
  type Asset,
  type AssetDeclaration,
  type AssetDescription,
  type AssetKind,
  type AssetPart,
  canonicalLabels,
  type Digest,
  missingPart,
  type Owner,
  platform,
  type Quota,
} from "../domain/asset.ts";
import type { AssetState } from "../domain/asset-states.ts";
import { idleSinceMs } from "../domain/collection.ts";
import type { BlobId, Usage } from "../ports.ts";

export interface AssetRow {
  readonly tenant_id: Owner;
  readonly asset_id: AssetId;
  readonly name: string;
  readonly kind: AssetKind;
  readonly version: number;
  readonly state: Exclude<AssetState, "removed">;
  readonly digest: Digest | null;
  readonly size_bytes: number;
  readonly received_bytes: number;
  readonly labels: string;
  readonly attached_to: AssetId | "";
  readonly keep: number;
  readonly created_at_ms: number;
  readonly last_used_at_ms: number;
  readonly marked_by: number | null;
  readonly lease_count: number;
  /** JSON: [id, digest, size, state] of each. */
  readonly parts: string;
}

/** True for an asset `a` that a living lease holds, directly or through what it is attached to; binds the present instant. */
export const heldNow = `EXISTS (
    SELECT 1 FROM lease_assets la JOIN leases l ON l.tenant_id = la.tenant_id AND l.lease_id = la.lease_id
    WHERE la.asset_id IN (a.asset_id, a.attached_to) AND l.expires_at_ms > ?)`;

/** True for an asset `a` that another one is made of, be that complete or not. */
export const partNow = "EXISTS (SELECT 1 FROM asset_parts ap WHERE ap.part_id = a.asset_id)";

/** Selects assets with their digest, their living leases counted, and their parts; binds the present instant first. */
export const selectAssets = `
  SELECT a.*, (SELECT b.digest FROM blobs b WHERE b.blob_id = a.blob_id) AS digest, (
    SELECT COUNT(DISTINCT la.lease_id) FROM lease_assets la
    JOIN leases l ON l.tenant_id = la.tenant_id AND l.lease_id = la.lease_id
    WHERE la.asset_id IN (a.asset_id, a.attached_to) AND l.expires_at_ms > ?
  ) AS lease_count, (
    SELECT json_group_array(json_array(p.asset_id, b.digest, p.size_bytes, p.state) ORDER BY ap.position)
    FROM asset_parts ap JOIN assets p ON p.tenant_id = ap.tenant_id AND p.asset_id = ap.part_id
    JOIN blobs b ON b.blob_id = p.blob_id
    WHERE ap.asset_id = a.asset_id AND ap.tenant_id = a.tenant_id
  ) AS parts
  FROM assets a`;

/** Ids of assets of a content, whoever owns them; binds its digest. A subquery, so that these few rows are looked at first. */
export const idsOfDigest =
  "(SELECT d.asset_id FROM assets d WHERE d.blob_id = (SELECT blob_id FROM blobs WHERE digest = ?))";

/** The asset when `viewer` may see it: its own, or one of the platform that is more than an upload. */
export async function findVisible(
  sql: SqlStatements,
  viewer: Owner,
  id: AssetId,
  nowMs: number,
): Promise<Asset | undefined> {
  const own = await findOwned(sql, viewer, id, nowMs);
  if (own !== undefined || viewer === platform) return own;
  const shared = await findOwned(sql, platform, id, nowMs);
  return shared?.state === "uploading" ? undefined : shared;
}

export async function findOwned(
  sql: SqlStatements,
  owner: Owner,
  id: AssetId,
  nowMs: number,
): Promise<Asset | undefined> {
  const row = await sql.one<AssetRow>(`${selectAssets} WHERE a.tenant_id = ? AND a.asset_id = ?`, [nowMs, owner, id]);
  return row === undefined ? undefined : toAsset(row);
}

/** The asset that uploading `declaration` again answers: one made of the same parts, of which none is missing. */
export async function findEqual(
  sql: SqlStatements,
  { owner, digest, kind, name, labels, attachedTo }: AssetDeclaration,
  parts: readonly AssetPart[],
  nowMs: number,
): Promise<Asset | undefined> {
  const rows = await sql.query<AssetRow>(
    `${selectAssets} WHERE a.tenant_id = ? AND a.asset_id IN ${idsOfDigest}
       AND a.kind = ? AND a.name = ? AND a.labels = ? AND a.attached_to = ? AND a.state IN ('available', 'error')`,
    [nowMs, owner, digest, kind, name, canonicalLabels(labels), attachedTo ?? ""],
  );
  const wanted = contentsOf(parts);
  return rows.map(toAsset).find((known) => contentsOf(known.parts) === wanted && missingPart(known) === undefined);
}

const contentsOf = (parts: readonly AssetPart[]): string => parts.map(({ digest }) => digest).join();

/** Whoever declares an asset again means to use it, and may ask to keep it. */
export async function refresh(tx: SqlStatements, known: Asset, keep: boolean, nowMs: number): Promise<Asset> {
  const asset = { ...known, keep: known.keep || keep, lastUsedAtMs: nowMs };
  await tx.run(
    "UPDATE assets SET marked_by = NULL, last_used_at_ms = ?, idle_since_ms = ?, keep = ? WHERE tenant_id = ? AND asset_id = ?",
    [nowMs, idleSinceMs(asset) ?? null, asset.keep ? 1 : 0, asset.owner, asset.id],
  );
  return asset;
}

/** An asset is attached to an available one of its owner that is not itself attached. */
export async function mustAttach(
  tx: SqlStatements,
  { owner, attachedTo }: AssetDescription,
  nowMs: number,
): Promise<void> {
  if (attachedTo === undefined) return;
  const parent = await findOwned(tx, owner, attachedTo, nowMs);
  if (parent === undefined) {
    throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${attachedTo} of this owner to attach to`);
  }
  if (parent.attachedTo !== undefined) {
    throw new ServiceError("INVALID_REQUEST", `attached_to: ${attachedTo} is itself attached to another asset`);
  }
  if (parent.state !== "available") {
    throw new ServiceError("ASSET_NOT_AVAILABLE", `asset ${attachedTo} is in state ${parent.state}`);
  }
}

export async function usageOf(sql: SqlStatements, owner: Owner): Promise<Usage> {
  const row = await sql.one<{ stored_bytes: number; asset_count: number }>(
    "SELECT stored_bytes, asset_count FROM tenant_usage WHERE tenant_id = ?",
    [owner],
  );
  return { storedBytes: row?.stored_bytes ?? 0, assetCount: row?.asset_count ?? 0 };
}

/** Counts bytes and assets more for their owner. Throws ASSET_QUOTA_EXCEEDED when it would then have more than `quota`. */
export async function count(
  tx: SqlStatements,
  owner: Owner,
  more: { readonly bytes: number; readonly assets: number },
  quota?: Quota,
): Promise<void> {
  if (quota !== undefined) {
    const { storedBytes, assetCount } = await usageOf(tx, owner);
    const metadata = { storedBytes: String(storedBytes), quotaBytes: String(quota.bytes) };
    if (quota.bytes > 0 && more.bytes > 0 && storedBytes + more.bytes > quota.bytes) {
      throw new ServiceError("ASSET_QUOTA_EXCEEDED", `${storedBytes} of ${quota.bytes} bytes are in use`, { metadata });
    }
    if (quota.assets > 0 && more.assets > 0 && assetCount + more.assets > quota.assets) {
      throw new ServiceError("ASSET_QUOTA_EXCEEDED", `there are ${assetCount} assets, ${quota.assets} are allowed`, {
        metadata: { assetCount: String(assetCount), quotaAssets: String(quota.assets) },
      });
    }
  }
  await tx.run(
    `INSERT INTO tenant_usage (tenant_id, stored_bytes, asset_count) VALUES (?, ?, ?)
     ON CONFLICT (tenant_id) DO UPDATE SET stored_bytes = tenant_usage.stored_bytes + excluded.stored_bytes,
       asset_count = tenant_usage.asset_count + excluded.asset_count`,
    [owner, more.bytes, more.assets],
  );
}

/** The next number for a name; none is given twice. */
export async function nextVersion(
  tx: SqlStatements,
  { owner, kind, name }: Pick<AssetDescription, "owner" | "kind" | "name">,
): Promise<number> {
  const row = await tx.one<{ versions: number }>(
    `INSERT INTO asset_names (tenant_id, kind, name, versions) VALUES (?, ?, ?, 1)
     ON CONFLICT (tenant_id, kind, name) DO UPDATE SET versions = asset_names.versions + 1 RETURNING versions`,
    [owner, kind, name],
  );
  if (row === undefined) throw new Error("no version was given");
  return row.versions;
}

/** One asset more is made of that content, whose number is answered; `identity` when its bytes were just stored. */
export async function refer(
  tx: SqlStatements,
  blob: { readonly digest: Digest; readonly sizeBytes: number; readonly identity?: string | undefined },
  nowMs: number,
): Promise<BlobId> {
  const { digest, sizeBytes, identity } = blob;
  const row = await tx.one<{ blob_id: BlobId }>(
    `INSERT INTO blobs (digest, size_bytes, refs) VALUES (?, ?, 1)
     ON CONFLICT (digest) DO UPDATE SET refs = blobs.refs + 1 RETURNING blob_id`,
    [digest, sizeBytes],
  );
  if (row === undefined) throw new Error("no content was counted");
  if (identity !== undefined) await mend(tx, { digest, identity }, nowMs);
  return row.blob_id;
}

/** The bytes are right: remembers them, and what was in state error is available again. */
export async function mend(
  tx: SqlStatements,
  { digest, identity }: { readonly digest: Digest; readonly identity: string },
  nowMs: number,
): Promise<number> {
  await tx.run("UPDATE blobs SET identity = ?, verified_at_ms = ? WHERE digest = ?", [identity, nowMs, digest]);
  const sql = `UPDATE assets SET state = 'available' WHERE state = 'error' AND asset_id IN ${idsOfDigest}`;
  return (await tx.run(sql, [digest])).changes;
}

/** Inserts an asset in state uploading, which counts `reservedBytes` against its owner. */
export async function insertUploading(
  tx: SqlStatements,
  description: AssetDescription,
  reservedBytes: number,
  quota: Quota,
  nowMs: number,
): Promise<Asset> {
  const { owner, name, kind, labels, attachedTo, keep } = description;
  await count(tx, owner, { bytes: reservedBytes, assets: 1 }, quota);
  const id = newId("asset", nowMs);
  await tx.run(
    `INSERT INTO assets (tenant_id, asset_id, name, kind, version, state, blob_id, size_bytes, received_bytes, labels,
       attached_to, keep, created_at_ms, last_used_at_ms, idle_since_ms)
     VALUES (?, ?, ?, ?, 0, 'uploading', NULL, ?, 0, ?, ?, ?, ?, ?, NULL)`,
    [owner, id, name, kind, reservedBytes, canonicalLabels(labels), attachedTo ?? "", keep ? 1 : 0, nowMs, nowMs],
  );
  return {
    ...description,
    id,
    state: "uploading",
    digest: undefined,
    sizeBytes: 0,
    receivedBytes: 0,
    version: 0,
    createdAtMs: nowMs,
    lastUsedAtMs: nowMs,
    leaseCount: 0,
    parts: [],
  };
}

/** The upload has become an available asset of `blob`; its bytes are counted already. */
export async function makeAvailable(
  tx: SqlStatements,
  upload: Asset,
  blob: { readonly digest: Digest; readonly sizeBytes: number; readonly identity?: string | undefined },
  nowMs: number,
): Promise<Asset> {
  const { digest, sizeBytes } = blob;
  const version = await nextVersion(tx, upload);
  const content = { digest, sizeBytes, receivedBytes: 0, version } as const;
  const asset: Asset = { ...upload, ...content, state: "available", lastUsedAtMs: nowMs };
  const blobId = await refer(tx, blob, nowMs);
  await tx.run(
    `UPDATE assets SET state = 'available', blob_id = ?, size_bytes = ?, received_bytes = 0, version = ?, last_used_at_ms = ?,
       idle_since_ms = ? WHERE tenant_id = ? AND asset_id = ?`,
    [blobId, sizeBytes, version, nowMs, idleSinceMs(asset) ?? null, upload.owner, upload.id],
  );
  return asset;
}

export function toAsset(row: AssetRow): Asset {
  const uploading = row.state === "uploading";
  return {
    id: row.asset_id,
    owner: row.tenant_id,
    name: row.name,
    kind: row.kind,
    version: row.version,
    state: row.state,
    digest: row.digest ?? undefined,
    sizeBytes: uploading ? 0 : row.size_bytes, // until then it is what the quota counts
    receivedBytes: row.received_bytes,
    labels: Object.fromEntries(JSON.parse(row.labels) as [string, string][]),
    attachedTo: row.attached_to === "" ? undefined : row.attached_to,
    keep: row.keep !== 0,
    createdAtMs: row.created_at_ms,
    lastUsedAtMs: row.last_used_at_ms,
    leaseCount: row.lease_count,
    parts: (JSON.parse(row.parts) as [AssetId, Digest, number, AssetState][]).map(([id, digest, sizeBytes, state]) => ({
      id,
      digest,
      sizeBytes,
      state,
    })),
  };
}
