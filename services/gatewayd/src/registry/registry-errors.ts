import type { ErrorReason, ServiceError } from "@unkey/base";
import { problemOf } from "../domain/problem.ts";

/** The codes that a registry may answer with: spec.md#error-codes; the last two are what Docker's own uses for 5xx. */
export type RegistryErrorCode =
  | "BLOB_UNKNOWN"
  | "BLOB_UPLOAD_INVALID"
  | "BLOB_UPLOAD_UNKNOWN"
  | "DIGEST_INVALID"
  | "MANIFEST_BLOB_UNKNOWN"
  | "MANIFEST_INVALID"
  | "MANIFEST_UNKNOWN"
  | "NAME_INVALID"
  | "NAME_UNKNOWN"
  | "SIZE_INVALID"
  | "UNAUTHORIZED"
  | "DENIED"
  | "UNSUPPORTED"
  | "TOOMANYREQUESTS"
  | "UNAVAILABLE"
  | "UNKNOWN";

export interface RegistryFailure {
  readonly status: number;
  readonly code: RegistryErrorCode;
  /** What a client prints. */
  readonly message: string;
}

const known: Partial<Record<ErrorReason, readonly [number, RegistryErrorCode]>> = {
  REPOSITORY_NAME_INVALID: [400, "NAME_INVALID"],
  REPOSITORY_NOT_FOUND: [404, "NAME_UNKNOWN"],
  BLOB_NOT_FOUND: [404, "BLOB_UNKNOWN"],
  BLOB_IN_USE: [405, "UNSUPPORTED"],
  BLOB_TOO_LARGE: [413, "SIZE_INVALID"],
  BLOB_SIZE_MISMATCH: [400, "SIZE_INVALID"],
  BLOB_UPLOAD_NOT_FOUND: [404, "BLOB_UPLOAD_UNKNOWN"],
  BLOB_UPLOAD_OUT_OF_ORDER: [416, "BLOB_UPLOAD_INVALID"],
  BLOB_RANGE_UNSATISFIABLE: [416, "BLOB_UNKNOWN"],
  TOO_MANY_BLOB_UPLOADS: [429, "TOOMANYREQUESTS"],
  DIGEST_INVALID: [400, "DIGEST_INVALID"],
  MANIFEST_NOT_FOUND: [404, "MANIFEST_UNKNOWN"],
  MANIFEST_INVALID: [400, "MANIFEST_INVALID"],
  MANIFEST_TOO_LARGE: [413, "MANIFEST_INVALID"],
  MANIFEST_BLOB_UNKNOWN: [400, "MANIFEST_BLOB_UNKNOWN"],
  MANIFEST_IN_USE: [405, "UNSUPPORTED"],
  REGISTRY_QUOTA_EXCEEDED: [403, "DENIED"],
  ASSET_QUOTA_EXCEEDED: [403, "DENIED"],
  ASSET_TOO_LARGE: [413, "SIZE_INVALID"],
  ASSET_STORE_BUSY: [503, "UNAVAILABLE"],
  UPLOAD_BUSY: [503, "UNAVAILABLE"],
  ASSET_STORE_FULL: [503, "UNAVAILABLE"],
  INVALID_REQUEST: [400, "UNSUPPORTED"],
  ROUTE_UNKNOWN: [404, "UNSUPPORTED"],
  METHOD_NOT_ALLOWED: [405, "UNSUPPORTED"],
  UNAUTHENTICATED: [401, "UNAUTHORIZED"],
  SCOPE_MISSING: [403, "DENIED"],
  RATE_LIMITED: [429, "TOOMANYREQUESTS"],
  TOO_MANY_STREAMS: [429, "TOOMANYREQUESTS"],
};

/** An error as clients of a registry read it. They print one text, so the next step is its end. */
export function registryFailureOf(error: ServiceError, requestId: string): RegistryFailure {
  const { status } = problemOf(error, requestId);
  const [exact, code] = known[error.reason] ?? [status, codeOf(status)];
  return { status: exact, code, message: `${sentence(error.message)} ${error.nextStep}` };
}

function codeOf(status: number): RegistryErrorCode {
  if (status >= 500) return status === 503 || status === 504 ? "UNAVAILABLE" : "UNKNOWN";
  if (status === 401) return "UNAUTHORIZED";
  if (status === 403) return "DENIED";
  return status === 429 ? "TOOMANYREQUESTS" : "UNSUPPORTED";
}

function sentence(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
