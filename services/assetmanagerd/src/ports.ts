import type { AssetId, LeaseId } from "@unkey/base";
import type {
  Asset,
  AssetDeclaration,
  AssetKind,
  CollectionRules,
  Digest,
  Labels,
  Lease,
  Owner,
} from "./domain/asset.ts";

export interface AssetQuery {
  /** Sees its own assets and the platform's. */
  readonly viewer: Owner;
  readonly kind?: AssetKind;
  /** All of them must match. */
  readonly labels: Labels;
  readonly limit: number;
  /** Only assets older than this one. */
  readonly before?: AssetId;
}

export interface LeaseWish {
  readonly tenantId: Owner;
  readonly key: string;
  readonly assetIds: readonly AssetId[];
  readonly nowMs: number;
  readonly expiresAtMs: number;
}

export interface Usage {
  readonly storedBytes: number;
  readonly assetCount: number;
}

/** Which assets exist, whose they are and who holds them. Each method is one transaction. */
export interface AssetCatalog extends AsyncDisposable {
  /**
   * Adds an available asset, or answers the one with the same declaration. Throws ASSET_QUOTA_EXCEEDED when the owner
   * would store more than `quotaBytes` (0: no limit).
   */
  add(declaration: AssetDeclaration, nowMs: number, quotaBytes: number): Promise<Asset>;
  /** The asset, when `viewer` may see it. */
  find(viewer: Owner, id: AssetId, nowMs: number): Promise<Asset | undefined>;
  list(query: AssetQuery, nowMs: number): Promise<Asset[]>;
  usage(owner: Owner): Promise<Usage>;
  /** True when `viewer` owns an available asset of that content. */
  owns(owner: Owner, digest: Digest): Promise<boolean>;
  /**
   * Takes a lease on available assets that the tenant may see, and notes their use; the same key with the same assets
   * extends the lease there is. Throws ASSET_NOT_FOUND, ASSET_NOT_AVAILABLE or LEASE_KEY_REUSED.
   */
  acquireLease(wish: LeaseWish): Promise<{ readonly lease: Lease; readonly assets: readonly Asset[] }>;
  /** Undefined when the lease has ended. */
  renewLease(tenantId: Owner, id: LeaseId, nowMs: number, expiresAtMs: number): Promise<Lease | undefined>;
  /** A lease that is gone already is success. */
  releaseLease(tenantId: Owner, id: LeaseId): Promise<void>;
  leases(tenantId: Owner, assetId: AssetId | undefined, nowMs: number): Promise<Lease[]>;
  /** The owner gives the asset up. Throws ASSET_NOT_FOUND or ASSET_IN_USE. */
  beginDelete(owner: Owner, id: AssetId, nowMs: number): Promise<Asset>;
  /** Notes that stored bytes are missing or wrong, for every asset made of them. */
  markCorrupt(digest: Digest): Promise<number>;
  /** Every content that an asset refers to, with its length. */
  digests(): Promise<ReadonlyMap<Digest, number>>;
  isReferenced(digest: Digest): Promise<boolean>;
  /** Begins a collection pass: drops expired leases and answers the pass's number. */
  beginPass(nowMs: number): Promise<number>;
  /** Assets that a pass might mark or sweep. */
  candidates(rules: CollectionRules): Promise<Asset[]>;
  mark(ids: readonly AssetId[], pass: number): Promise<void>;
  /** Removes the asset unless it has been leased or rescued meanwhile; answers whether it is gone. */
  remove(id: AssetId, rules: CollectionRules): Promise<boolean>;
}

/** Bytes that arrived and were verified. Disposal drops what was not committed. */
export interface ReceivedBlob extends AsyncDisposable {
  /** Makes the blob part of the store, durably. */
  commit(): Promise<void>;
}

/** Content by digest. */
export interface BlobStore {
  /** Reads `chunks` to the end. Throws ASSET_DIGEST_MISMATCH, ASSET_SIZE_MISMATCH or ASSET_STORE_FULL. */
  receive(
    expected: { readonly digest: Digest; readonly sizeBytes: number },
    chunks: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<ReceivedBlob>;
  /** Length of the blob, or undefined when it is not there. */
  sizeOf(digest: Digest): Promise<number | undefined>;
  /** Where the verified bytes are. Throws ASSET_CORRUPT when they are not the digest's. */
  verified(digest: Digest, signal: AbortSignal): Promise<string>;
  /** The bytes from `offset`; throws ASSET_CORRUPT at the end when the whole is not the digest's. */
  read(digest: Digest, offset: number, signal: AbortSignal): AsyncIterable<Uint8Array>;
  list(): AsyncIterable<Digest>;
  /** Answers the bytes given back; 0 when it was gone already. */
  delete(digest: Digest): Promise<number>;
}

export type StagingMethod = "hard_link" | "reflink" | "copy";

export interface Placement {
  readonly blobPath: string;
  readonly fileName: string;
}

/** Puts files where a VM can see them. */
export interface Stager {
  /** One answer per placement, in order. Throws STAGING_TARGET_REFUSED or STAGING_FAILED. */
  stage(targetDir: string, placements: readonly Placement[], signal: AbortSignal): Promise<StagingMethod[]>;
}
