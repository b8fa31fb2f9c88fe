import type { AssetId, LeaseId, TenantId } from "@unkey/base";
import type { AssetState } from "./asset-states.ts";

/** Owner of an asset: a tenant, or the platform, whose assets every tenant sees. */
export type Owner = TenantId | "";
export const platform = "";

/** `sha256:<64 hex digits>`. */
export type Digest = `sha256:${string}`;

export const assetKinds = [
  "kernel",
  "initrd",
  "rootfs",
  "disk_image",
  "snapshot",
  "provenance",
  "sbom",
  "image_blob",
  "layer",
] as const;
export type AssetKind = (typeof assetKinds)[number];

export type Labels = Readonly<Record<string, string>>;

/** What an owner says about an asset, whatever its content. */
export interface AssetDescription {
  readonly owner: Owner;
  readonly name: string;
  readonly kind: AssetKind;
  readonly labels: Labels;
  /** The owner's asset that it describes and goes with. */
  readonly attachedTo: AssetId | undefined;
  /** Only its owner ends it. */
  readonly keep: boolean;
}

/** What distinguishes an asset within its owner, `keep` excepted: the same declaration twice is the same asset. */
export interface AssetDeclaration extends AssetDescription {
  readonly digest: Digest;
  readonly sizeBytes: number;
}

/** Another asset of the owner that an asset is of no use without. */
export interface AssetPart {
  readonly id: AssetId;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly state: AssetState;
}

export interface Asset extends AssetDescription {
  readonly id: AssetId;
  readonly state: AssetState;
  /** In order. They stay while this one does, and have no parts themselves. */
  readonly parts: readonly AssetPart[];
  /** Undefined while uploading. */
  readonly digest: Digest | undefined;
  /** 0 while uploading. */
  readonly sizeBytes: number;
  /** While uploading: bytes that are durable. */
  readonly receivedBytes: number;
  /** Counts the owner's assets of this kind and name from 1; 0 while uploading. */
  readonly version: number;
  readonly createdAtMs: number;
  /** When a lease was last taken. Reading never refreshes it. */
  readonly lastUsedAtMs: number;
  /** Leases that hold it, or what is attached to it, now. */
  readonly leaseCount: number;
}

export interface Lease {
  readonly id: LeaseId;
  readonly tenantId: Owner;
  readonly key: string;
  readonly assetIds: readonly AssetId[];
  readonly expiresAtMs: number;
}

/** The first part that keeps the whole from being used. */
export function missingPart({ parts }: Pick<Asset, "parts">): AssetPart | undefined {
  return parts.find(({ state }) => state !== "available");
}

/** What a tenant may store; 0 for no limit. */
export interface Quota {
  readonly bytes: number;
  readonly assets: number;
}

/** Labels in the one text form that equal labels share. */
export function canonicalLabels(labels: Labels): string {
  return JSON.stringify(Object.entries(labels).toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

export function parseDigest(text: string): Digest | undefined {
  return /^sha256:[0-9a-f]{64}$/.test(text) ? (text as Digest) : undefined;
}
