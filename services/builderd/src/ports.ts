import type { ImageSignature, PackageList } from "@unkey/attest";
import type { AssetId, BuildId, TenantId, UploadId } from "@unkey/base";
import type { ImageReference, ImageSource, RegistryCredentials } from "@unkey/oci";
import type { Build, BuildFailure, BuildRequest, BuildResult } from "./domain/build.ts";
import type { BuildEvent, BuildState } from "./domain/build-state.ts";
import type { BuildPolicy } from "./domain/policy.ts";
import type { BuildProcess } from "./domain/process.ts";
import type { BuildQuota, QuotaUse } from "./domain/quota.ts";

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
  readonly failure?: BuildFailure;
  readonly completion?: {
    readonly result: BuildResult;
    /** Where the cache keeps the result. */
    readonly rootfsKey: string;
    readonly process: BuildProcess;
    readonly cacheHit: boolean;
  };
  /** Of the step that ends. */
  readonly bytes?: StepBytes;
  /** When the step ended, where that was before now: its process had died. */
  readonly stepEndedAtMs?: number;
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

/** Throws when a tenant that has used so much today may have no more. */
export interface Admission {
  readonly today: Today;
  readonly check: (used: QuotaUse) => void;
}

/** A day in UTC, up to now. */
export interface Today {
  readonly startMs: number;
  readonly nowMs: number;
}

export interface Retention {
  readonly endedBeforeMs: number;
  readonly keptPerTenant: number;
  /** Builds that ended from here on stay in any case: quotas count them. */
  readonly todayMs: number;
}

/** Keeps builds, their logs and the cache of results. What has been answered survives the process. */
export interface BuildStore {
  /**
   * The build of that tenant and key, made if there is none yet; `created` tells which. Throws IDEMPOTENCY_KEY_REUSED
   * when the key stands for another request, BUILD_QUEUE_FULL over a limit, and whatever `admit` throws at what the tenant
   * has used: it is asked in the same transaction, for new builds only.
   */
  create(
    build: NewBuild,
    limits: BuildLimits,
    admit?: Admission,
  ): Promise<{ readonly build: Build; readonly created: boolean }>;
  /** Throws BUILD_NOT_FOUND. */
  get(tenantId: TenantId, buildId: BuildId): Promise<Build>;
  /** Newest first, before `beforeId` when that is not empty. */
  list(tenantId: TenantId, limit: number, beforeId: string): Promise<Build[]>;
  /** Every build that has not ended, oldest first. */
  unfinished(): Promise<Build[]>;
  /** Moves a build from `from`; false when it is no longer there: somebody else has moved it. */
  advance(build: Build, from: BuildState, event: BuildEvent, change: BuildChange, nowMs: number): Promise<boolean>;
  setResolved(build: Build, resolved: Pick<Build, "imageDigest" | "policyDigest">): Promise<void>;
  /** The process that runs these builds lives. */
  setAlive(buildIds: readonly BuildId[], nowMs: number): Promise<void>;
  /** Removes builds, logs and results that have had their time; answers how many builds. */
  prune(retention: Retention): Promise<number>;
  findResult(tenantId: TenantId, rootfsKey: string): Promise<BuildResult | undefined>;
  forgetResult(tenantId: TenantId, rootfsKey: string): Promise<void>;
  /** Adds a line; past the last line that a build may have, nothing. */
  log(build: Build, text: string, nowMs: number): Promise<void>;
  readLog(build: Build, afterSequence: number, limit: number): Promise<LogLine[]>;
}

/** Reads off the rows what tenants have used. */
export interface QuotaStore {
  /** Running builds count up to now. */
  used(tenantId: TenantId, today: Today): Promise<QuotaUse>;
  /** Writes down bytes that the build's attempt will fetch, unless the admission throws, in one transaction. */
  admitFetch(build: Build, bytes: number, admission: Admission): Promise<void>;
  /** Corrects them to what was fetched. */
  settleFetch(build: Build, bytes: number): Promise<void>;
}

export interface Upload {
  readonly uploadId: UploadId;
  readonly tenantId: TenantId;
  /** Its file's; may be empty. */
  readonly name: string;
  readonly digest: string;
  readonly sizeBytes: number;
  readonly expiresAtMs: number;
}

/** Keeps the facts of image archives that were taken in. */
export interface UploadStore {
  /** Throws UPLOAD_LIMIT_REACHED when the tenant holds `maxPerTenant` already. */
  add(upload: Upload, maxPerTenant: number): Promise<void>;
  ids(): Promise<Set<string>>;
  /** Lets an upload expire now; one that an unfinished build reads goes with that build. */
  expire(tenantId: TenantId, uploadId: UploadId): Promise<void>;
  /** Forgets uploads that have expired or were built from, except those that an unfinished build reads; answers their ids. */
  removeSpent(nowMs: number): Promise<UploadId[]>;
}

/** A file to be stored as an asset. */
interface AssetFile {
  readonly tenantId: TenantId;
  /** The same for every try of one build. */
  readonly uploadKey: string;
  readonly name: string;
  readonly path: string;
  readonly sizeBytes: number;
}

export interface RootfsFile extends AssetFile {
  readonly labels: Readonly<Record<string, string>>;
  /** Assets of the layers that it names as its devices, in their order. */
  readonly partIds: readonly AssetId[];
}

export interface LayerFile extends AssetFile {
  /** The file's digest, when an asset store has counted it before. */
  readonly knownDigest: string | undefined;
}

export interface StoredFile {
  readonly assetId: AssetId;
  /** sha256:<hex>, as the asset store has counted it. */
  readonly digest: string;
}

/** What holds for a tenant now. */
export interface BuildRules {
  readonly policy: BuildPolicy;
  readonly policyDigest: string;
  readonly quota: BuildQuota;
}

/** What the operator has laid down. */
export interface RulesSource {
  rulesOf(tenantId: TenantId): BuildRules;
}

/** Bytes of layers that a build fetches count against its tenant's quota. */
export interface FetchQuota {
  /**
   * Call it once an attempt knows from the manifest what it will fetch, before it does; layers of the cache do not count. Throws
   * BUILD_QUOTA_EXCEEDED.
   */
  admitBytes(build: Build, bytes: number): Promise<void>;
  /** Call it when the attempt's fetching has ended, however it did, with what has been fetched. */
  settleBytes(build: Build, bytes: number): Promise<void>;
}

/** Logins at registries that are kept for tenants, beside those that come with a build and are never kept. */
export interface CredentialStore {
  /** The tenant's login for an image. Throws REGISTRY_CREDENTIALS_UNUSABLE when there is one that must not be used now. */
  find(tenantId: TenantId, reference: ImageReference): Promise<RegistryCredentials | undefined>;
}

/** Where root filesystems and the layers that they are made of go. A try continues what an earlier one with the same key began. */
export interface AssetRegistry {
  /** Throws ASSET_NOT_AVAILABLE when a part is gone. */
  storeRootfs(
    file: RootfsFile,
    signal: AbortSignal,
    onBytes: (done: number, total: number) => void,
  ): Promise<StoredFile>;
  /** Answers the tenant's asset of the same bytes where there is one. */
  storeLayer(file: LayerFile, signal: AbortSignal): Promise<StoredFile>;
  /** An image that the tenant pushed to the platform. */
  pushedImage(image: {
    readonly tenantId: TenantId;
    readonly repository: string;
    readonly digest: string;
  }): ImageSource;
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
  /** What `checkSignatures` answered. */
  readonly signatures: readonly ImageSignature[];
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

export interface AttestedResult extends Pick<BuildResult, "rootfsAssetId" | "provenanceAssetId" | "sbomAssetId"> {
  readonly signatures: readonly ImageSignature[];
}

/** States how a root filesystem was made. */
export interface Attester {
  /**
   * Stores the package list and the signed provenance as assets attached to the root filesystem, or finds the ones that
   * an earlier try stored. Provenance comes last: where it is, the list is.
   */
  attest(request: AttestRequest, signal: AbortSignal): Promise<Attestation>;
  /**
   * True when a cached result can be booted: its root filesystem is there, and the provenance and the package list that it
   * names are attached to it and hold. The provenance must record the signatures that were found now.
   */
  holds(tenantId: TenantId, result: AttestedResult, signal: AbortSignal): Promise<boolean>;
}
