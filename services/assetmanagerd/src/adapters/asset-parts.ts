import { type AssetId, ServiceError } from "@unkey/base";
import type { SqlStatements } from "@unkey/sql";
import type { Asset, Owner } from "../domain/asset.ts";
import { findOwned, refresh } from "./asset-rows.ts";

/**
 * Makes the upload consist of available assets of its owner that are not made of parts themselves and go with no other asset.
 * Those that a collection pass has marked are taken back, as by a lease.
 */
export async function insertParts(
  tx: SqlStatements,
  { owner, id, attachedTo }: Asset,
  partIds: readonly AssetId[],
  nowMs: number,
): Promise<void> {
  if (partIds.length > 0 && attachedTo !== undefined) {
    throw new ServiceError("INVALID_REQUEST", "part_ids: what is attached to another asset has no parts");
  }
  for (const [position, partId] of partIds.entries()) {
    const part = await findOwned(tx, owner, partId, nowMs);
    if (part === undefined) {
      throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${partId} of this owner to be a part`);
    }
    if (part.state !== "available") {
      throw new ServiceError("ASSET_NOT_AVAILABLE", `the part ${partId} is in state ${part.state}`);
    }
    if (part.parts.length > 0) {
      throw new ServiceError("INVALID_REQUEST", `part_ids: ${partId} is made of parts itself`);
    }
    if (part.attachedTo !== undefined) {
      throw new ServiceError("INVALID_REQUEST", `part_ids: ${partId} is attached to another asset, and goes with that`);
    }
    await refresh(tx, part, false, nowMs);
    await tx.run("INSERT INTO asset_parts (tenant_id, asset_id, position, part_id) VALUES (?, ?, ?, ?)", [
      owner,
      id,
      position,
      partId,
    ]);
  }
}

/** Throws ASSET_IN_USE when the asset is part of another, whatever that one's state. */
export async function mustBeNoPart(tx: SqlStatements, owner: Owner, id: AssetId): Promise<void> {
  const wholes = await tx.query<{ asset_id: AssetId }>(
    "SELECT DISTINCT asset_id FROM asset_parts WHERE part_id = ? AND tenant_id = ? ORDER BY asset_id",
    [id, owner],
  );
  const [first] = wholes;
  if (first === undefined) return;
  throw new ServiceError(
    "ASSET_IN_USE",
    `asset ${id} is part of ${wholes.length} other(s), ${first.asset_id} for one`,
    {
      metadata: { partOf: first.asset_id },
    },
  );
}
