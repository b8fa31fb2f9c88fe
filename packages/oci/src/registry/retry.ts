import { type Backoff, backoffDelayMs, type Clock, type ServiceError } from "@unkey/base";

/** Thrown by an attempt that may succeed later; `final` is what the caller gets when it does not. */
export class Retryable extends Error {
  readonly final: ServiceError;
  /** What the server asked for; undefined for our own backoff. */
  readonly retryAfterMs: number | undefined;
  /** Most attempts that a failure of this kind is worth. */
  readonly attempts: number;

  constructor(
    final: ServiceError,
    options: { readonly retryAfterMs?: number | undefined; readonly attempts?: number } = {},
  ) {
    super(final.message, { cause: final });
    this.final = final;
    this.retryAfterMs = options.retryAfterMs;
    this.attempts = options.attempts ?? defaultAttempts;
  }
}

/** Told before each pause: why the last attempt failed, and how long until the next one. */
export type OnRetry = (reason: string, waitMs: number) => void;

export interface Retries {
  readonly clock: Clock;
  /** Yields a number in [0, 1). */
  readonly random: () => number;
  readonly onRetry: OnRetry | undefined;
  /** Attempts at most, whatever the failure is worth. */
  readonly attempts: number;
}

export const defaultAttempts = 4;
const backoff: Backoff = { baseMs: 250, maxMs: 5_000 };
/** A server that asks for a longer pause is not waited for: the build fails now and says how long. */
const maxRetryAfterMs = 30_000;

/** Waits before attempt number `failed` + 1, or throws what ends the trying. `error` is why the last attempt failed. */
export async function waitToRetry(
  { clock, random, onRetry, attempts }: Retries,
  error: unknown,
  failed: number,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  if (!(error instanceof Retryable)) throw error;
  const asked = error.retryAfterMs ?? 0;
  if (failed >= Math.min(attempts, error.attempts) || asked > maxRetryAfterMs) throw error.final;
  // On top of what was asked for: the many that were sent away together do not come back together.
  const waitMs = asked + backoffDelayMs(backoff, failed - 1, random);
  onRetry?.(error.final.message, waitMs);
  await clock.sleep(waitMs, signal);
}

/** Runs `attempt` until it succeeds, fails for good, or has failed often enough. */
export async function withRetries<T>(retries: Retries, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
  for (let failed = 0; ; ) {
    try {
      return await attempt();
    } catch (error) {
      await waitToRetry(retries, error, ++failed, signal);
    }
  }
}

/** Milliseconds that a Retry-After header (RFC 9110, section 10.2.3) asks for; undefined when absent or unreadable. */
export function retryAfterMs(header: string | readonly string[] | undefined, nowMs: number): number | undefined {
  const text = typeof header === "string" ? header : header?.[0];
  if (text === undefined) return undefined;
  if (/^\d+$/.test(text)) return Math.min(Number(text) * 1000, Number.MAX_SAFE_INTEGER);
  // Date.parse takes more than HTTP's three forms of a date, all of which start with the name of a day.
  const atMs = /^[A-Z][a-z]{2,8},? /.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(atMs) ? undefined : Math.max(0, atMs - nowMs);
}
