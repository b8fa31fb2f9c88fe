import type { PackageList } from "@unkey/attest";
import type { AssetId, BuildId, TenantId, UploadId } from "@unkey/base";
import type { Build, BuildFailure, BuildRequest, BuildResult } from "./domain/build.ts";
import type { BuildEvent, BuildState } from "./domain/build-state.ts";
import type { BuildProcess } from "./domain/process.ts";

export interface NewBuild {
  readonly buildId: BuildId;
  readonly tenantId: TenantId;
  readonly idempotencyKey: string;
  readonly request: BuildRequest;
  readonly withCredentials: boolean;
  readonly platform: string;
  readonly nowMs: number;
}

/** What changes in a build as it moves to another state. */
export interface BuildChange {
  readonly imageDigest?: string;
  readonly failure?: BuildFailure;
  readonly completion?: {
    readonly result: BuildResult;
    readonly process: BuildProcess;
    readonly cacheHit: boolean;
  };
  /** Of the step that ends. */
  readonly bytes?: StepBytes;
}

export interface StepBytes {
  readonly done: number;
  readonly total: number;
}

export interface LogLine {
  readonly sequence: number;
  readonly atMs: number;
  readonly text: string;
}

export interface BuildLimits {
  /** Builds of one tenant that have not ended. */
  readonly unfinishedPerTenant: number;
  readonly unfinished: number;
}

/** Keeps builds, their logs and the cache of results. What has been answered survives the process. */
export interface BuildStore {
  /**
   * The build of that tenant and key, made if there is none yet; `created` tells which. Throws IDEMPOTENCY_KEY_REUSED
   * when the key stands for another request, BUILD_QUEUE_FULL over a limit.
   */
  create(build: NewBuild, limits: BuildLimits): Promise<{ readonly build: Build; readonly created: boolean }>;
  /** Throws BUILD_NOT_FOUND. */
  get(tenantId: TenantId, buildId: BuildId): Promise<Build>;
  /** Newest first, before `beforeId` when that is not empty. */
  list(tenantId: TenantId, limit: number, beforeId: string): Promise<Build[]>;
  /** Every build that has not ended, oldest first. */
  unfinished(): Promise<Build[]>;
  /** Moves a build from `from`; false when it is no longer there: somebody else has moved it. */
  advance(build: Build, from: BuildState, event: BuildEvent, change: BuildChange, nowMs: number): Promise<boolean>;
  setImageDigest(build: Build, imageDigest: string): Promise<void>;
  findResult(tenantId: TenantId, rootfsKey: string): Promise<BuildResult | undefined>;
  forgetResult(tenantId: TenantId, rootfsKey: string): Promise<void>;
  /** Adds a line; past the last line that a build may have, nothing. */
  log(build: Build, text: string, nowMs: number): Promise<void>;
  readLog(build: Build, afterSequence: number, limit: number): Promise<LogLine[]>;
}

export interface Upload {
  readonly uploadId: UploadId;
  readonly tenantId: TenantId;
  readonly digest: string;
  readonly sizeBytes: number;
  readonly expiresAtMs: number;
}

/** Keeps the facts of image archives that were taken in. */
export interface UploadStore {
  /** Throws UPLOAD_LIMIT_REACHED when the tenant holds `maxPerTenant` already. */
  add(upload: Upload, maxPerTenant: number): Promise<void>;
  ids(): Promise<Set<string>>;
  /** Forgets uploads that have expired or were built from, except those that an unfinished build reads; answers their ids. */
  removeSpent(nowMs: number): Promise<UploadId[]>;
}

export interface RootfsFile {
  readonly tenantId: TenantId;
  readonly name: string;
  readonly path: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** Where root filesystems go. */
export interface AssetRegistry {
  /** Stores a file as a ROOTFS asset, or finds the one of the same labels and bytes that an earlier try stored. */
  store(
    file: RootfsFile,
    signal: AbortSignal,
    onBytes: (done: number, total: number) => void,
  ): Promise<{ readonly assetId: AssetId; readonly sizeBytes: number }>;
  /** True when the tenant's asset can be used. */
  isAvailable(tenantId: TenantId, assetId: AssetId, signal: AbortSignal): Promise<boolean>;
}

/** What was made of which image, to be stated and signed. */
export interface AttestRequest {
  readonly build: Build;
  readonly image: {
    readonly manifestDigest: string;
    readonly config: { readonly digest: string; readonly sizeBytes: number };
    /** Lowest first. */
    readonly layers: readonly { readonly digest: string; readonly sizeBytes: number }[];
  };
  readonly format: "erofs" | "ext4";
  /** sha256:<hex> of the policy that the build was made under. */
  readonly policyDigest: string;
  readonly rootfs: { readonly assetId: AssetId; readonly digest: string; readonly sizeBytes: number };
  readonly packages: PackageList;
  readonly startedAtMs: number;
  readonly finishedAtMs: number;
}

export interface Attestation {
  readonly provenanceAssetId: AssetId;
  readonly sbomAssetId: AssetId;
}

/** States how a root filesystem was made. */
export interface Attester {
  /**
   * Stores the list of packages and the signed provenance as assets attached to the root filesystem, or finds the ones that
   * an earlier try stored. Provenance comes last: where it is, the list is.
   */
  attest(request: AttestRequest, signal: AbortSignal): Promise<Attestation>;
}
