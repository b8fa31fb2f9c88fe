import type { AssetId, LeaseId, TenantId } from "@unkey/base";

/** Owner of an asset: a tenant, or the platform, whose assets every tenant sees. */
export type Owner = TenantId | "";
export const platform = "";

/** `sha256:<64 hex digits>`. */
export type Digest = `sha256:${string}`;

/**
 * - available: stored and verified
 * - deleting: marked by its owner; nobody can use it, a later pass removes it
 * - error: the stored bytes are missing or wrong
 */
export type AssetState = "available" | "deleting" | "error";

export const assetKinds = ["kernel", "initrd", "rootfs", "disk_image", "snapshot", "provenance", "sbom"] as const;
export type AssetKind = (typeof assetKinds)[number];

export type Labels = Readonly<Record<string, string>>;

/** What distinguishes an asset within its owner: the same declaration twice is the same asset. */
export interface AssetDeclaration {
  readonly owner: Owner;
  readonly name: string;
  readonly kind: AssetKind;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly labels: Labels;
}

export interface Asset extends AssetDeclaration {
  readonly id: AssetId;
  readonly state: AssetState;
  readonly createdAtMs: number;
  /** When a lease was last taken. Reading never refreshes it. */
  readonly lastUsedAtMs: number;
  /** Leases that hold it now. */
  readonly leaseCount: number;
  /** The collection pass that marked it; a later one may remove it. Taking a lease removes the mark. */
  readonly markedBy: number | undefined;
}

export interface Lease {
  readonly id: LeaseId;
  readonly tenantId: Owner;
  readonly key: string;
  readonly assetIds: readonly AssetId[];
  readonly expiresAtMs: number;
}

/** What a collection pass may do, given what an earlier one marked. */
export interface CollectionRules {
  readonly pass: number;
  readonly nowMs: number;
  readonly graceMs: number;
}

/**
 * Assets to mark: held by no lease and either given up by their owner or idle longer than the grace period. The
 * platform's assets never age: nothing would bring them back.
 */
export function toMark(assets: readonly Asset[], { nowMs, graceMs }: CollectionRules): Asset[] {
  return assets.filter((asset) => asset.markedBy === undefined && isGarbage(asset, nowMs, graceMs));
}

/** Assets to remove: marked by an earlier pass, and garbage still. One pass of delay lets late users be seen. */
export function toSweep(assets: readonly Asset[], { pass, nowMs, graceMs }: CollectionRules): Asset[] {
  return assets.filter(
    (asset) => asset.markedBy !== undefined && asset.markedBy < pass && isGarbage(asset, nowMs, graceMs),
  );
}

function isGarbage(asset: Asset, nowMs: number, graceMs: number): boolean {
  if (asset.leaseCount > 0) return false;
  if (asset.state === "deleting") return true;
  return asset.owner !== platform && nowMs - asset.lastUsedAtMs > graceMs;
}

/** Labels in the one text form that equal labels share. */
export function canonicalLabels(labels: Labels): string {
  return JSON.stringify(Object.entries(labels).toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

export function parseDigest(text: string): Digest | undefined {
  return /^sha256:[0-9a-f]{64}$/.test(text) ? (text as Digest) : undefined;
}
