import type { AssetId, TenantId } from "@unkey/base";

export type StatementKind = "provenance" | "sbom";

export interface StatementAsset {
  readonly assetId: AssetId;
  readonly digest: string;
  readonly sizeBytes: number;
}

export interface NewStatement {
  readonly tenantId: TenantId;
  /** The root filesystem that it describes. */
  readonly attachedTo: AssetId;
  readonly kind: StatementKind;
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** Assets that describe a root filesystem. */
export interface StatementAssets {
  /** The root filesystem, when it can be used. */
  rootfs(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<StatementAsset | undefined>;
  /** Those of the kind that can be used, newest first; at most some dozen. */
  attached(
    tenantId: TenantId,
    attachedTo: AssetId,
    kind: StatementKind,
    signal: AbortSignal,
  ): Promise<StatementAsset[]>;
  /** Throws ASSET_TOO_LARGE beyond `maxBytes`, and what assetmanagerd throws. */
  read(tenantId: TenantId, assetId: AssetId, maxBytes: number, signal: AbortSignal): Promise<Buffer>;
  /** The digest of the bytes as they are read now. Throws what assetmanagerd throws, ASSET_CORRUPT among it. */
  hash(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<string>;
  store(statement: NewStatement, signal: AbortSignal): Promise<StatementAsset>;
}
