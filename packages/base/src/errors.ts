import { inspect } from "node:util";
import { type ErrorCode, type ErrorReason, errorCatalogue } from "./error-catalogue.ts";

export interface ServiceErrorOptions {
  readonly cause?: unknown;
  /** Replaces the catalogue's next step where the thrower knows a better one. */
  readonly nextStep?: string;
  /** Machine-readable facts, safe to show the caller: sizes, limits, names. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * The only error that crosses a service's door. `reason` is a key of the error catalogue, which fixes the code and the
 * next step; `message` is one sentence safe to show the caller; `cause` stays inside and is logged once.
 */
export class ServiceError extends Error {
  readonly reason: ErrorReason;
  readonly code: ErrorCode;
  readonly nextStep: string;
  readonly metadata: Readonly<Record<string, string>>;

  constructor(reason: ErrorReason, message: string, options: ServiceErrorOptions = {}) {
    super(message, "cause" in options ? { cause: options.cause } : undefined);
    this.name = "ServiceError";
    this.reason = reason;
    this.code = errorCatalogue[reason].code;
    this.nextStep = options.nextStep ?? errorCatalogue[reason].nextStep;
    this.metadata = options.metadata ?? {};
  }
}

/** True when `error` is a ServiceError, of the given reason if one is named. */
export function isServiceError(error: unknown, reason?: ErrorReason): error is ServiceError {
  return error instanceof ServiceError && (reason === undefined || error.reason === reason);
}

/** Every message from `error` down its chain of causes, outermost first; for logs, never for callers. */
export function causeChain(error: unknown): string[] {
  const messages: string[] = [];
  for (let at: unknown = error; at !== undefined && messages.length < 16; ) {
    if (!(at instanceof Error)) {
      messages.push(typeof at === "string" ? at : inspect(at));
      break;
    }
    messages.push(`${at.name}: ${at.message}`);
    at = at.cause;
  }
  return messages;
}
