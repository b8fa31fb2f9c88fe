import { ServiceError } from "@unkey/base";

/** What a worker does that no worker does: whoever made the image may have taken it over. */
export function misbehaved(what: string, cause?: unknown): ServiceError {
  return new ServiceError("BUILD_WORKER_MISBEHAVED", `the process that read the image ${what}`, { cause });
}
