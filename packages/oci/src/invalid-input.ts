import { type ErrorReason, ServiceError } from "@unkey/base";

/** Bytes from outside that break their format. Stays inside the package: the doors turn it into a ServiceError. */
export class InvalidInput extends Error {
  override readonly name = "InvalidInput";
}

/** Rethrows an InvalidInput as a ServiceError of `reason` whose message starts with `context`; anything else unchanged. */
export function rethrowInvalid(error: unknown, reason: ErrorReason, context: string): never {
  if (error instanceof InvalidInput) throw new ServiceError(reason, `${context}: ${error.message}`, { cause: error });
  throw error;
}
