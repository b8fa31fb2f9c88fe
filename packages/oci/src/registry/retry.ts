import { type Backoff, backoffDelayMs, type Clock, type ServiceError } from "@unkey/base";

/** Thrown by an attempt that may succeed later; `final` is what the caller gets when it does not. */
export class Retryable extends Error {
  readonly final: ServiceError;
  /** What the server asked for; undefined for our own backoff. */
  readonly retryAfterMs: number | undefined;

  constructor(final: ServiceError, retryAfterMs?: number) {
    super(final.message, { cause: final });
    this.final = final;
    this.retryAfterMs = retryAfterMs;
  }
}

const attempts = 4;
const backoff: Backoff = { baseMs: 250, maxMs: 5_000 };
/** A server that asks for a longer pause is not waited for: the build fails now and says how long. */
const maxRetryAfterMs = 30_000;

/** Runs `attempt` until it succeeds, fails for good, or has failed `attempts` times. */
export async function withRetries<T>(clock: Clock, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
  for (let count = 1; ; count++) {
    try {
      return await attempt();
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Retryable)) throw error;
      const waitMs = error.retryAfterMs ?? backoffDelayMs(backoff, count - 1);
      if (count === attempts || waitMs > maxRetryAfterMs) throw error.final;
      await clock.sleep(waitMs, signal);
    }
  }
}

/** Milliseconds that a Retry-After header (RFC 9110, section 10.2.3) asks for; undefined when absent or unreadable. */
export function retryAfterMs(header: string | readonly string[] | undefined, nowMs: number): number | undefined {
  const text = typeof header === "string" ? header : header?.[0];
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000;
  const atMs = Date.parse(text);
  return Number.isNaN(atMs) ? undefined : Math.max(0, atMs - nowMs);
}
