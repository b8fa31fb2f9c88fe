import { createHash } from "node:crypto";
import {
  type AssetId,
  type BuildId,
  type ErrorReason,
  isServiceError,
  ServiceError,
  type TenantId,
  type UploadId,
} from "@unkey/base";
import type { BuildState } from "./build-state.ts";
import type { SetuidPolicy } from "./policy.ts";
import type { BuildProcess } from "./process.ts";

export type BuildSource =
  | { readonly kind: "reference"; readonly reference: string }
  | { readonly kind: "upload"; readonly uploadId: UploadId }
  /** In the platform's own registry; `digest` is its manifest's. */
  | { readonly kind: "pushed"; readonly repository: string; readonly digest: string };

export type RootfsFormat = "erofs" | "ext4";

/** What is asked for; everything that decides the result but the login. */
export interface BuildRequest {
  readonly source: BuildSource;
  /** The registry may be spoken to without TLS. */
  readonly plainHttp: boolean;
  readonly format: RootfsFormat;
  /** Replaces the image's own command when not empty. */
  readonly argvOverride: readonly string[];
}

export interface BuildStep {
  readonly state: BuildState;
  readonly startedAtMs: number;
  /** 0 while it runs. */
  readonly endedAtMs: number;
  readonly bytesDone: number;
  /** 0 when unknown. */
  readonly bytesTotal: number;
}

export interface BuildFailure {
  readonly reason: ErrorReason;
  readonly message: string;
  readonly nextStep: string;
}

export interface Build {
  readonly buildId: BuildId;
  readonly tenantId: TenantId;
  readonly idempotencyKey: string;
  readonly request: BuildRequest;
  /** The image as people call it. */
  readonly imageName: string;
  /** True when a login came with the request; it is held in memory only. */
  readonly withCredentials: boolean;
  readonly state: BuildState;
  /** Times that a process has begun it. */
  readonly attempts: number;
  readonly platform: string;
  /** Empty until resolved. */
  readonly imageDigest: string;
  /** Of the policy that it is built under; empty until resolved. */
  readonly policyDigest: string;
  readonly cacheHit: boolean;
  readonly rootfsAssetId: AssetId | "";
  readonly rootfsBytes: number;
  readonly provenanceAssetId: AssetId | "";
  readonly sbomAssetId: AssetId | "";
  readonly process: BuildProcess | undefined;
  readonly failure: BuildFailure | undefined;
  readonly steps: readonly BuildStep[];
  readonly createdAtMs: number;
  /** When the process that runs it was last known to live; 0 before it began. */
  readonly aliveAtMs: number;
}

/** What a finished build gives; also what the cache keeps. */
export interface BuildResult {
  readonly imageDigest: string;
  readonly rootfsAssetId: AssetId;
  readonly rootfsBytes: number;
  readonly provenanceAssetId: AssetId | "";
  readonly sbomAssetId: AssetId | "";
  /** The image's own, without an override. */
  readonly process: BuildProcess;
}

/** Rises whenever the same image would give another root filesystem: earlier results are then not used any more. */
const rootfsVersion = 3;

/** Everything that a root filesystem's bytes follow from. */
export interface RootfsRecipe {
  readonly imageDigest: string;
  readonly platform: string;
  readonly format: RootfsFormat;
  readonly policyDigest: string;
}

/** The labels of a root filesystem asset; the same labels mean the same bytes. */
export function rootfsLabels({ imageDigest, platform, format, policyDigest }: RootfsRecipe): Record<string, string> {
  return {
    "image.digest": imageDigest,
    "rootfs.platform": platform,
    "rootfs.format": format,
    "rootfs.policy": policyDigest,
    "rootfs.version": String(rootfsVersion),
  };
}

/** Names the root filesystem that a recipe gives: the cache's key. */
export function rootfsKey(recipe: RootfsRecipe): string {
  return Object.values(rootfsLabels(recipe)).join(" ");
}

/** Names what a root filesystem's bytes follow from, without the parts of the policy that only allow or refuse. */
export function rootfsIdentity({ imageDigest, platform, format }: RootfsRecipe, setuid: SetuidPolicy): string {
  return [imageDigest, platform, format, setuid, rootfsVersion].join(" ");
}

/** Tells a repeated request from another one under the same key. */
export function requestDigest(request: BuildRequest): string {
  const { source, plainHttp, argvOverride, format } = request;
  return createHash("sha256")
    .update(JSON.stringify([source.kind, sourceText(source), plainHttp, argvOverride, format]))
    .digest("hex");
}

/** A source in one string, as a row keeps it beside its kind. */
export function sourceText(source: BuildSource): string {
  switch (source.kind) {
    case "reference":
      return source.reference;
    case "upload":
      return source.uploadId;
    case "pushed":
      return `${source.repository}@${source.digest}`;
  }
}

/** What `sourceText` was made from. */
export function sourceOf(kind: BuildSource["kind"], text: string): BuildSource {
  switch (kind) {
    case "reference":
      return { kind, reference: text };
    case "upload":
      return { kind, uploadId: text as UploadId };
    case "pushed": {
      const at = text.lastIndexOf("@");
      return { kind, repository: text.slice(0, at), digest: text.slice(at + 1) };
    }
  }
}

/** What the caller is told about a build that ended by `error`. */
export function failureOf(error: unknown): BuildFailure {
  const told = isServiceError(error) ? error : new ServiceError("INTERNAL", "something broke inside the builder");
  return { reason: told.reason, message: told.message, nextStep: told.nextStep };
}
