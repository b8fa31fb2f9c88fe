import { type Asset, platform } from "./asset.ts";

/** What a collection pass may do, given what an earlier one marked. */
export interface CollectionRules {
  readonly pass: number;
  readonly nowMs: number;
  readonly graceMs: number;
}

/**
 * The instant from which an asset counts as idle, or undefined for what never goes by age: uploads (they expire by rules
 * of their own), what its owner wants kept, what goes with another asset, and the platform's, which nothing would bring
 * back. What its owner has given up is idle from the beginning of time.
 */
export function idleSinceMs(
  asset: Pick<Asset, "state" | "owner" | "keep" | "attachedTo" | "lastUsedAtMs">,
): number | undefined {
  if (asset.state === "deleting") return 0;
  if (asset.state === "uploading" || asset.keep || asset.owner === platform || asset.attachedTo !== undefined) {
    return undefined;
  }
  return asset.lastUsedAtMs;
}

/** Assets idle since before this instant are garbage, unless a lease holds them. */
export function idleCutoffMs({ nowMs, graceMs }: CollectionRules): number {
  return nowMs - graceMs;
}
