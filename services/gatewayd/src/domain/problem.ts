import type { ErrorCode, ErrorReason, ServiceError } from "@unkey/base";

/** Why a request failed: https://www.rfc-editor.org/rfc/rfc9457, with the catalogue's members. */
export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly reason: string;
  readonly nextStep: string;
  readonly requestId: string;
  readonly metadata?: Readonly<Record<string, string>>;
}

const statusByCode: Readonly<Record<ErrorCode, number>> = {
  canceled: 499,
  unknown: 500,
  invalid_argument: 400,
  deadline_exceeded: 504,
  not_found: 404,
  already_exists: 409,
  permission_denied: 403,
  resource_exhausted: 429,
  failed_precondition: 409,
  aborted: 409,
  out_of_range: 400,
  unimplemented: 501,
  internal: 500,
  unavailable: 503,
  data_loss: 500,
  unauthenticated: 401,
};

/** Where HTTP has a more exact word than the code's. */
const statusByReason: Partial<Record<ErrorReason, number>> = {
  METHOD_NOT_ALLOWED: 405,
  UNSUPPORTED_MEDIA_TYPE: 415,
  BODY_TOO_LARGE: 413,
  MESSAGE_TOO_LARGE: 413,
  // https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/ §2.7
  IDEMPOTENCY_KEY_REUSED: 422,
};

export function problemOf(error: ServiceError, requestId: string): Problem {
  const reason = error.metadata["peerReason"] ?? error.reason;
  const words = reason.toLowerCase().replaceAll("_", " ");
  return {
    type: `urn:unkey:error:${reason}`,
    title: words.charAt(0).toUpperCase() + words.slice(1),
    status: statusByReason[error.reason] ?? statusByCode[error.code],
    detail: error.message,
    reason,
    nextStep: error.nextStep,
    requestId,
    ...(Object.keys(error.metadata).length > 0 ? { metadata: error.metadata } : {}),
  };
}
