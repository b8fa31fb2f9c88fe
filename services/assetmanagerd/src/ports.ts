import type { Hash } from "node:crypto";
import type { AssetId, BuildId, LeaseId, TenantId } from "@unkey/base";
import type { Caller } from "@unkey/rpc";
import type {
  Asset,
  AssetDeclaration,
  AssetDescription,
  AssetKind,
  Digest,
  Labels,
  Lease,
  Owner,
  Quota,
} from "./domain/asset.ts";
import type { CollectionRules } from "./domain/collection.ts";

export interface AssetQuery {
  /** Sees its own assets and the platform's. */
  readonly viewer: Owner;
  readonly kind?: AssetKind;
  readonly name?: string;
  readonly version?: number;
  readonly digest?: Digest;
  readonly attachedTo?: AssetId;
  /** All of them must match. */
  readonly labels: Labels;
  readonly limit: number;
  /** Only assets older than this one. */
  readonly before?: AssetId;
}

export interface Usage {
  /** What is being uploaded included. */
  readonly storedBytes: number;
  readonly assetCount: number;
}

/** Which assets exist and whose they are. In this and the other catalogs each method is one transaction. */
export interface AssetCatalog {
  /**
   * Adds an available asset, or answers the one with the same declaration. `identity` is that of the verified blob, when
   * it was just stored. Throws ASSET_QUOTA_EXCEEDED, or ASSET_NOT_FOUND and ASSET_NOT_AVAILABLE for what it is attached to.
   */
  add(declaration: AssetDeclaration, quota: Quota, nowMs: number, identity?: string): Promise<Asset>;
  /** The asset, when `viewer` may see it. */
  find(viewer: Owner, id: AssetId, nowMs: number): Promise<Asset | undefined>;
  list(query: AssetQuery, nowMs: number): Promise<Asset[]>;
  usage(owner: Owner): Promise<Usage>;
  /** Length of that content, when `owner` has an available asset of it. */
  ownedSize(owner: Owner, digest: Digest): Promise<number | undefined>;
  /**
   * The owner gives the asset up, with what is attached to it. Throws ASSET_NOT_FOUND, ASSET_NOT_AVAILABLE, or ASSET_IN_USE
   * for what a lease holds and for parts.
   */
  giveUp(owner: Owner, id: AssetId, nowMs: number): Promise<Asset>;
}

export interface UploadWish extends AssetDescription {
  /** The owner's name for it; empty for an upload of one stream, which nobody can resume. */
  readonly key: string;
  /** Counted against the quota before any byte arrives. */
  readonly reserveBytes: number;
  /** What the asset will be made of, in order; they stay from now on. */
  readonly partIds: readonly AssetId[];
}

/** Assets in state uploading. */
export interface UploadCatalog {
  /**
   * Adds an asset in state uploading, or answers what the key already names: that asset, or the one it became. Throws
   * UPLOAD_KEY_REUSED, UPLOAD_LIMIT_REACHED, ASSET_QUOTA_EXCEEDED, what `add` throws about attachments, and the same about
   * parts.
   */
  begin(wish: UploadWish, quota: Quota, nowMs: number): Promise<Asset>;
  /** The owner's upload; what it became, once finished. Throws ASSET_NOT_FOUND. */
  find(owner: Owner, id: AssetId, nowMs: number): Promise<Asset>;
  /** Counts `bytes` in all against the quota before they arrive. Throws ASSET_QUOTA_EXCEEDED. */
  reserve(owner: Owner, id: AssetId, bytes: number, quota: Quota): Promise<void>;
  /** `receivedBytes` are durable; `reservedBytes` are counted. */
  note(owner: Owner, id: AssetId, receivedBytes: number, reservedBytes: number, nowMs: number): Promise<void>;
  /** The bytes are stored: the asset becomes available, or gives way to an equal one whose parts are, which is answered. */
  finish(
    owner: Owner,
    id: AssetId,
    stored: { readonly digest: Digest; readonly sizeBytes: number; readonly identity: string },
    nowMs: number,
  ): Promise<Asset>;
  /** Removes an asset in state uploading; one that is gone or finished is left alone. Answers the bytes that had arrived. */
  cancel(owner: Owner, id: AssetId): Promise<number>;
  /** Uploads that nobody touched since. */
  idleSince(instantMs: number): Promise<{ readonly owner: Owner; readonly id: AssetId; readonly bytes: number }[]>;
  /** Forgets the keys of uploads that ended before. */
  forgetFinished(instantMs: number): Promise<void>;
  /** After a crash: removes what nobody can resume, and counts only what arrived of the rest. */
  recover(): Promise<void>;
  isUploading(id: AssetId): Promise<boolean>;
}

export interface LeaseWish {
  readonly tenantId: Owner;
  readonly key: string;
  readonly assetIds: readonly AssetId[];
  readonly nowMs: number;
  readonly expiresAtMs: number;
}

/** What an asset is made of, as it was last found right. */
export type Content = Pick<BlobRecord, "digest" | "identity">;

/** The content of an asset, and of each of its parts in order. */
export interface WholeContent extends Content {
  readonly parts: readonly (Content & { readonly id: AssetId })[];
}

/** Who holds assets. */
export interface LeaseCatalog {
  /**
   * Takes a lease on available assets that the tenant may see and whose parts are available, and notes their use and that of
   * their parts; the same key with the same assets extends the lease there is. Throws ASSET_NOT_FOUND, ASSET_NOT_AVAILABLE or
   * LEASE_KEY_REUSED.
   */
  acquire(wish: LeaseWish): Promise<{ readonly lease: Lease; readonly contents: ReadonlyMap<AssetId, WholeContent> }>;
  /** Undefined when the lease has ended. */
  renew(tenantId: Owner, id: LeaseId, nowMs: number, expiresAtMs: number): Promise<Lease | undefined>;
  /** A lease that is gone already is success. */
  release(tenantId: Owner, id: LeaseId): Promise<void>;
  list(tenantId: Owner, assetId: AssetId | undefined, nowMs: number): Promise<Lease[]>;
}

export interface BlobRecord {
  readonly digest: Digest;
  readonly sizeBytes: number;
  /** Assets made of it. */
  readonly refs: number;
  /** Of the stored bytes when they were last found right; undefined when they were found wrong. */
  readonly identity: string | undefined;
}

export interface ScrubPosition {
  /** The last blob looked at; empty when no round is under way. */
  readonly after: Digest | "";
  readonly startedAtMs: number;
}

/** What is known about stored content. */
export interface BlobCatalog {
  find(digest: Digest): Promise<BlobRecord | undefined>;
  /** The next records in the order of their digests. */
  after(digest: Digest | "", limit: number): Promise<BlobRecord[]>;
  /** The bytes were found right: remembers it, and mends the assets that were in state error. Answers how many. */
  noteRight(found: readonly { readonly digest: Digest; readonly identity: string }[], nowMs: number): Promise<number>;
  /** The bytes are missing or wrong: every asset made of them gets into state error. Answers how many. */
  noteWrong(digest: Digest): Promise<number>;
  /** Assets in state error. */
  damaged(): Promise<number>;
  /** Where the scrubber is, and when it began this round. */
  scrubPosition(): Promise<ScrubPosition>;
  setScrubPosition(position: ScrubPosition): Promise<void>;
}

/** A content by its number. */
export type BlobId = number;

/** An asset that a pass looks at. */
export interface Candidate {
  readonly owner: Owner;
  readonly id: AssetId;
  readonly blob: BlobId | undefined;
  readonly idleSinceMs: number;
}

/** Where a slice ended. */
export type Position = Pick<Candidate, "id" | "idleSinceMs">;

/** What a slice of a pass would work on; `end` is undefined when nothing was left to look at. */
export interface Candidates {
  readonly found: readonly Candidate[];
  readonly end: Position | undefined;
}

/** A part that would be garbage but for what it is a part of: the places in which it is named. */
export interface HeldPart extends Candidate {
  readonly places: number;
}

/** What a slice of a pass marked; `end` is undefined when nothing was left to look at. */
export interface Marked {
  readonly ids: readonly AssetId[];
  readonly end: Position | undefined;
}

/** What a slice of a pass removed: assets with their attachments, and bytes that nothing refers to any more. */
export interface Swept extends Marked {
  readonly freedBytes: number;
}

/** Contents of which another number of assets is counted than is made of them. */
export interface Recount {
  readonly disagreeing: readonly { readonly digest: Digest; readonly refs: number; readonly found: number }[];
  readonly end: BlobId | undefined;
}

/** What a collection pass reads and does, in slices that hold the database for a few milliseconds. */
export interface CollectionCatalog {
  /** Begins a pass: drops expired leases and answers the pass's number. */
  beginPass(nowMs: number): Promise<number>;
  /** Assets that an earlier pass marked and that no lease holds, among the next `limit` after the given one. */
  sweepable(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Candidates>;
  /** Assets that are idle or given up, unmarked, part of nothing, and that no lease holds, likewise. */
  markable(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Candidates>;
  /** Parts of these that would be markable but for what they are parts of; one answer for each place. */
  heldParts(rules: CollectionRules, wholes: readonly AssetId[]): Promise<HeldPart[]>;
  /** What is attached to these. */
  attachments(candidates: readonly Candidate[]): Promise<Pick<Candidate, "id" | "blob">[]>;
  /** Bytes that nothing would refer to any more once so many assets of each content were gone. */
  bytesOf(lost: ReadonlyMap<BlobId, number>): Promise<number>;
  /** Removes what is sweepable after the given one. Durable when `settle` resolves. */
  sweep(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Swept>;
  /** Marks what is markable after the given one. Durable when `settle` resolves. */
  mark(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Marked>;
  settle(): Promise<void>;
  /** Those of these that nothing is known of. */
  unknown(digests: readonly Digest[]): Promise<Digest[]>;
  /** Counts the assets of the next `limit` contents. */
  recount(after: BlobId, limit: number): Promise<Recount>;
}

export interface Unused {
  readonly digest: Digest;
  readonly sizeBytes: number;
}

/** Content that nothing refers to any more. */
export interface RemovalCatalog {
  /** Some of it; that nothing refers to it is durable. */
  unused(limit: number): Promise<Unused[]>;
  /** Those of these that nothing refers to now. */
  stillUnused(digests: readonly Digest[]): Promise<Digest[]>;
  /** Forgets those of these that nothing refers to. */
  forget(digests: readonly Digest[]): Promise<void>;
}

/** Everything that is known about assets, in one database: a view for each verb group. */
export interface Catalog extends AsyncDisposable {
  readonly assets: AssetCatalog;
  readonly uploads: UploadCatalog;
  readonly leases: LeaseCatalog;
  readonly blobs: BlobCatalog;
  readonly collection: CollectionCatalog;
  readonly removal: RemovalCatalog;
  readonly keys: KeyCatalog;
}

/** Keys of sealed blobs, each wrapped by another. What is answered is durable. */
export interface KeyCatalog {
  /** The owner's key: `fresh`, unless there was one. */
  tenantKey(owner: Owner, fresh: Uint8Array): Promise<Uint8Array>;
  /** The blob's key: `fresh`, unless there was one. */
  addBlobKey(digest: Digest, fresh: WrappedBlobKey): Promise<WrappedBlobKey>;
  blobKey(digest: Digest): Promise<WrappedBlobKey | undefined>;
  forgetBlobKeys(digests: readonly Digest[]): Promise<void>;
}

export interface WrappedBlobKey {
  /** Whose key wraps it. */
  readonly owner: Owner;
  readonly wrapped: Uint8Array;
}

/** Content by digest. Nothing here verifies: whoever reads does. */
export interface BlobStore {
  /** True when a crash of this host cannot cut short what is stored: nothing to look over at a start. */
  readonly survivesCrashes: boolean;
  /** Takes the verified and durable file at `path`, sent by `owner`, as the content of `digest`, replacing what is there; the file may stay. */
  adopt(digest: Digest, path: string, owner: Owner, signal: AbortSignal): Promise<void>;
  /** Length of the blob, or undefined when it is not there. */
  size(digest: Digest, signal: AbortSignal): Promise<number | undefined>;
  /** Changes whenever the stored bytes may have changed; undefined when the blob is not there. */
  identity(digest: Digest, signal: AbortSignal): Promise<string | undefined>;
  /** The stored bytes from `offset`. Throws ASSET_CORRUPT when the blob is not there. */
  read(digest: Digest, offset: number, signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** Every digest, ascending, in pages. */
  list(signal: AbortSignal): AsyncIterable<readonly Digest[]>;
  /** What is gone already is success. */
  delete(digests: readonly Digest[], signal: AbortSignal): Promise<void>;
  /** A file of this host with the stored bytes, never to be written to. Throws ASSET_CORRUPT when the blob is not there. */
  localPath(digest: Digest, signal: AbortSignal): Promise<string>;
}

/** Bytes that arrive for one upload. */
export interface IncomingFile extends AsyncDisposable {
  write(chunk: Uint8Array): Promise<void>;
  /** What was written is durable when this resolves. */
  sync(): Promise<void>;
}

/** Files of uploads under way, on this host. */
export interface IncomingFiles {
  /** The file of an upload, cut off after `offset` bytes. Throws UPLOAD_OFFSET_MISMATCH when it is shorter. */
  open(id: AssetId, offset: number): Promise<IncomingFile>;
  /** Makes the file exactly so long before it becomes a blob. Throws UPLOAD_OFFSET_MISMATCH when it is shorter. */
  settle(id: AssetId, bytes: number): Promise<void>;
  /**
   * Makes a file of this host the upload's, whole and durable, once `admit` has allowed its size; answers that, and gives `hash`
   * the bytes. Throws ASSET_SOURCE_REFUSED before anything has changed.
   */
  adopt(id: AssetId, sourcePath: string, hash: Hash, admit: (bytes: number) => Promise<void>): Promise<number>;
  read(id: AssetId, signal: AbortSignal): AsyncIterable<Uint8Array>;
  path(id: AssetId): string;
  remove(id: AssetId): Promise<void>;
  list(): Promise<AssetId[]>;
  /** Throws ASSET_STORE_FULL when `bytes` more would fill the disk. */
  mustHaveRoom(bytes: number): Promise<void>;
}

/** Starts builds. */
export interface Builds {
  /**
   * Starts a build of `image` for the tenant, or answers one that is under way or ended lately. Throws what builderd throws.
   */
  start(tenantId: TenantId, image: string, caller: Caller): Promise<BuildId>;
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
