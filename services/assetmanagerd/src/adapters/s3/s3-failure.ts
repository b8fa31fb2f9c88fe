import { type Backoff, backoffDelayMs, type Clock, ServiceError } from "@unkey/base";

const backoff: Backoff = { baseMs: 200, maxMs: 5_000 };
const attempts = 5;
const maxRetryAfterMs = 30_000;

/** What one request came to, before anybody has decided whether to try again. */
export class S3Failure extends Error {
  /** 0 without an answer. */
  readonly status: number;
  /** The service's own word, such as SlowDown; of a failed connection its code. */
  readonly code: string;
  readonly retryAfterMs: number;

  constructor(status: number, code: string, retryAfter?: string | string[], cause?: unknown) {
    super(`${status} ${code}`, { cause });
    this.status = status;
    this.code = code;
    const seconds = typeof retryAfter === "string" && /^\d{1,6}$/.test(retryAfter) ? Number(retryAfter) : 0;
    this.retryAfterMs = Math.min(seconds * 1000, maxRetryAfterMs);
  }

  static ofTransport(error: unknown): unknown {
    if (!(error instanceof Error) || error instanceof S3Failure || error instanceof ServiceError) return error;
    if (error.name === "AbortError") return error;
    return new S3Failure(
      0,
      "code" in error && typeof error.code === "string" ? error.code : error.name,
      undefined,
      error,
    );
  }

  /** True for what may pass by itself: no answer, too many requests, trouble on the service's side, a clock step. */
  get passes(): boolean {
    return this.status === 0 || this.status === 429 || this.status >= 500 || this.code === "RequestTimeout";
  }

  asServiceError(): ServiceError {
    const said = [this.status === 0 ? "no answer" : String(this.status), this.code]
      .filter((part) => part !== "")
      .join(", ");
    return this.passes
      ? new ServiceError("BLOB_STORE_UNAVAILABLE", `the S3 service is not available (${said})`, { cause: this })
      : new ServiceError("BLOB_STORE_REFUSED", `the S3 service refuses the request (${said})`, { cause: this });
  }
}

/** True when the service refused with that status. */
export function isRefusal(error: unknown, status: number): boolean {
  return error instanceof ServiceError && error.cause instanceof S3Failure && error.cause.status === status;
}

/** Runs `attempt` until it succeeds, fails in a way that does not pass, or has failed often enough. */
export async function withRetries<T>(clock: Clock, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
  for (let failed = 0; ; failed++) {
    try {
      return await attempt();
    } catch (error) {
      await pause(clock, error, failed, signal);
    }
  }
}

/** Waits before the next attempt, or throws what ends them: `failed` came before this one. */
export async function pause(clock: Clock, error: unknown, failed: number, signal: AbortSignal): Promise<void> {
  if (!(error instanceof S3Failure)) throw error;
  if (!error.passes || failed + 1 >= attempts) throw error.asServiceError();
  await clock.sleep(error.retryAfterMs + backoffDelayMs(backoff, failed), signal);
}
