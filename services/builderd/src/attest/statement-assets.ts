import type { AssetId, TenantId } from "@unkey/base";

export type StatementKind = "provenance" | "sbom";

export interface StatementAsset {
  readonly assetId: AssetId;
  readonly digest: string;
  readonly sizeBytes: number;
}

export interface RootfsAsset extends StatementAsset {
  /** Assets that it is made of, in its order. */
  readonly parts: readonly { readonly assetId: AssetId; readonly digest: string }[];
}

/** What an asset's bytes are as they are read now. */
export interface ReadBytes {
  readonly digest: string;
  /** The first 4 KiB. */
  readonly head: Buffer;
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
  /** The root filesystem, when it and its parts can be used. */
  rootfs(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<RootfsAsset | undefined>;
  /** Those of the kind that can be used, newest first; at most some dozen. */
  attached(
    tenantId: TenantId,
    attachedTo: AssetId,
    kind: StatementKind,
    signal: AbortSignal,
  ): Promise<StatementAsset[]>;
  /** Throws ASSET_TOO_LARGE beyond `maxBytes`, and what assetmanagerd throws. */
  read(tenantId: TenantId, assetId: AssetId, maxBytes: number, signal: AbortSignal): Promise<Buffer>;
  /** Reads all of it. Throws what assetmanagerd throws, ASSET_CORRUPT among it. */
  readAgain(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<ReadBytes>;
  store(statement: NewStatement, signal: AbortSignal): Promise<StatementAsset>;
}
