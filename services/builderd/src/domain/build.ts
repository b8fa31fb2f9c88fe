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
import type { BuildProcess } from "./process.ts";

export type BuildSource =
  | { readonly kind: "reference"; readonly reference: string }
  | { readonly kind: "upload"; readonly uploadId: UploadId };

/** What is asked for; everything that decides the result but the login. */
export interface BuildRequest {
  readonly source: BuildSource;
  /** The registry may be spoken to without TLS. */
  readonly plainHttp: boolean;
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
  /** True when a login came with the request; it is held in memory only. */
  readonly withCredentials: boolean;
  readonly state: BuildState;
  /** Times that a process has begun it. */
  readonly attempts: number;
  readonly platform: string;
  /** Empty until resolved. */
  readonly imageDigest: string;
  readonly cacheHit: boolean;
  readonly rootfsAssetId: AssetId | "";
  readonly rootfsBytes: number;
  readonly process: BuildProcess | undefined;
  readonly failure: BuildFailure | undefined;
  readonly steps: readonly BuildStep[];
  readonly createdAtMs: number;
}

/** What a finished build gives; also what the cache keeps. */
export interface BuildResult {
  readonly imageDigest: string;
  readonly rootfsAssetId: AssetId;
  readonly rootfsBytes: number;
  /** The image's own, without an override. */
  readonly process: BuildProcess;
}

/** Rises whenever the same image would give another root filesystem: earlier results are then not used any more. */
const rootfsPolicyVersion = 1;

/** The labels of a root filesystem asset; the same labels mean the same bytes. */
export function rootfsLabels(imageDigest: string, platform: string): Record<string, string> {
  return {
    "image.digest": imageDigest,
    "rootfs.platform": platform,
    "rootfs.format": "erofs",
    "rootfs.policy": String(rootfsPolicyVersion),
  };
}

/** Names the root filesystem that an image has under the current policy. */
export function rootfsKey(imageDigest: string, platform: string): string {
  return Object.values(rootfsLabels(imageDigest, platform)).join(" ");
}

/** Tells a repeated request from another one under the same key. */
export function requestDigest(request: BuildRequest): string {
  const { source, plainHttp, argvOverride } = request;
  const wanted = source.kind === "upload" ? ["upload", source.uploadId] : ["reference", source.reference];
  return createHash("sha256")
    .update(JSON.stringify([wanted, plainHttp, argvOverride]))
    .digest("hex");
}

/** What the caller is told about a build that ended by `error`. */
export function failureOf(error: unknown): BuildFailure {
  const told = isServiceError(error) ? error : new ServiceError("INTERNAL", "something broke inside the builder");
  return { reason: told.reason, message: told.message, nextStep: told.nextStep };
}

/** The image as it was asked for. */
export function imageNameOf(source: BuildSource): string {
  return source.kind === "upload" ? source.uploadId : source.reference;
}
