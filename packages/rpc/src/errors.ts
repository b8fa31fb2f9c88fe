import { Code, ConnectError } from "@connectrpc/connect";
import { codeFromString, codeToString } from "@connectrpc/connect/protocol-connect";
import { ErrorInfoSchema } from "@unkey/api/common";
import { type ErrorCode, type ErrorReason, errorCatalogue, isServiceError, ServiceError } from "@unkey/base";
import { explainMalformed } from "./malformed.ts";

/** The error as it crosses the wire: code, message and an `unkey.common.v1.ErrorInfo`; never the cause. */
export function toConnectError(error: ServiceError): ConnectError {
  const { reason, nextStep, metadata } = error;
  const detail = { desc: ErrorInfoSchema, value: { reason, nextStep, metadata: { ...metadata } } };
  return new ConnectError(error.message, codeFromString(error.code) ?? Code.Internal, undefined, [detail], error);
}

/**
 * What a server tells its caller about `error`: a ServiceError as it is, a broken deadline or a withdrawn call as the
 * signal says, a message that the protocol refused by its kind, and everything else as INTERNAL without a detail.
 */
export function toServiceError(error: unknown, signal: AbortSignal | undefined, requestId: string): ServiceError {
  if (signal?.aborted) return fromSignal(signal, error);
  if (isServiceError(error)) return error;
  // The protocol layer speaks ConnectError. One from the wire is another service's and must not pass as ours.
  if (error instanceof ConnectError && !error.isWireError) {
    const reason = protocolReasons.get(error.code) ?? malformed(error);
    if (reason === "MALFORMED_MESSAGE") return new ServiceError(reason, explainMalformed(error.rawMessage));
    if (reason !== undefined) return new ServiceError(reason, error.rawMessage);
  }
  return new ServiceError("INTERNAL", "something broke inside the service", { cause: error, metadata: { requestId } });
}

const protocolReasons = new Map<Code, ErrorReason>([
  [Code.InvalidArgument, "MALFORMED_MESSAGE"],
  [Code.ResourceExhausted, "MESSAGE_TOO_LARGE"],
  [Code.Unimplemented, "UNIMPLEMENTED"],
]);

/** Bytes that are no message of the method are an internal error to connect-es 2.2; to us the sender's mistake. */
function malformed({ code, rawMessage }: ConnectError): ErrorReason | undefined {
  const bySender = rawMessage.startsWith("parse binary:") || rawMessage.startsWith("received compressed envelope");
  return code === Code.Internal && bySender ? "MALFORMED_MESSAGE" : undefined;
}

function fromSignal(signal: AbortSignal, cause: unknown): ServiceError {
  const reason: unknown = signal.reason;
  if (isServiceError(reason)) return reason;
  const code = reason instanceof ConnectError ? reason.code : undefined;
  const timedOut = code === Code.DeadlineExceeded || (reason instanceof Error && reason.name === "TimeoutError");
  return timedOut
    ? new ServiceError("DEADLINE_EXCEEDED", "the call's deadline passed before it was done", { cause })
    : new ServiceError("CANCELED", "the caller withdrew the call", { cause });
}

/** Reasons for codes that arrive without a reason of this release. */
const reasonsByCode: Readonly<Record<ErrorCode, ErrorReason>> = {
  canceled: "CANCELED",
  unknown: "INTERNAL",
  invalid_argument: "INVALID_REQUEST",
  deadline_exceeded: "DEADLINE_EXCEEDED",
  not_found: "NOT_FOUND",
  already_exists: "ALREADY_EXISTS",
  permission_denied: "PERMISSION_DENIED",
  resource_exhausted: "RESOURCE_EXHAUSTED",
  failed_precondition: "FAILED_PRECONDITION",
  aborted: "ABORTED",
  out_of_range: "INVALID_REQUEST",
  unimplemented: "UNIMPLEMENTED",
  internal: "INTERNAL",
  unavailable: "DEPENDENCY_UNAVAILABLE",
  data_loss: "DATA_LOSS",
  unauthenticated: "UNAUTHENTICATED",
};

export function isKnownReason(text: string): text is ErrorReason {
  return Object.hasOwn(errorCatalogue, text);
}

/**
 * What a failed call means to the caller. The peer's own words when it sent them. Without them the peer never answered
 * as one of ours does: refused connection, broken stream, foreign server; that is DEPENDENCY_UNAVAILABLE, whatever code
 * the transport guessed, so that the caller may try again.
 */
export function fromCallError(error: unknown, peer: string, signal: AbortSignal | undefined): ServiceError {
  if (isServiceError(error)) return error;
  if (!(error instanceof ConnectError)) {
    if (signal?.aborted) return fromSignal(signal, error);
    return new ServiceError("DEPENDENCY_UNAVAILABLE", `${peer} cannot be reached`, { cause: error });
  }
  const info = error.findDetails(ErrorInfoSchema)[0];
  if (info !== undefined) {
    const code = codeToString(error.code) as ErrorCode;
    const known = isKnownReason(info.reason) && errorCatalogue[info.reason].code === code;
    return new ServiceError(known ? (info.reason as ErrorReason) : reasonsByCode[code], error.rawMessage, {
      cause: error,
      nextStep: info.nextStep,
      metadata: known ? info.metadata : { ...info.metadata, peerReason: info.reason },
    });
  }
  if (signal?.aborted) return fromSignal(signal, error);
  if (isServiceError(error.cause)) return error.cause;
  if (error.code === Code.DeadlineExceeded) {
    return new ServiceError("DEADLINE_EXCEEDED", `${peer} did not answer within the deadline`, { cause: error });
  }
  if (error.code === Code.InvalidArgument || error.code === Code.ResourceExhausted) {
    // Our own side refused to send or to read the message.
    return new ServiceError(protocolReasons.get(error.code) ?? "INTERNAL", error.rawMessage, { cause: error });
  }
  return new ServiceError("DEPENDENCY_UNAVAILABLE", `${peer} cannot be reached`, { cause: error });
}
