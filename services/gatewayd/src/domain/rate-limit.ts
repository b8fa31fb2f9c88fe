export interface RateLimit {
  /** Requests that may come at once after a quiet time. */
  readonly burst: number;
  /** Requests that may come for ever. */
  readonly perSecond: number;
}

export interface RateDecision {
  readonly allowed: boolean;
  /** What to remember for the key: its theoretical arrival time. */
  readonly arrivalMs: number;
  /** Requests that would be allowed right now after this one. */
  readonly remaining: number;
  /** When the next request is allowed; 0 when it is now. */
  readonly retryAfterMs: number;
  /** When the whole burst is available again. */
  readonly resetMs: number;
}

/**
 * The generic cell rate algorithm (ITU-T I.371): one number per key gives an exact burst, a steady rate and the time to
 * wait. `arrivalMs` is what the previous decision said, undefined for a key that was never seen.
 */
export function decideRate(limit: RateLimit, arrivalMs: number | undefined, nowMs: number): RateDecision {
  const intervalMs = 1000 / limit.perSecond;
  const toleranceMs = intervalMs * (limit.burst - 1);
  const dueMs = Math.max(arrivalMs ?? nowMs, nowMs);
  const early = dueMs - nowMs - toleranceMs;
  // Arrival times are sums of fractions; a nanosecond of rounding must not refuse a request.
  if (early > 1e-6) {
    return { allowed: false, arrivalMs: dueMs, remaining: 0, retryAfterMs: early, resetMs: dueMs - nowMs };
  }
  const nextMs = dueMs + intervalMs;
  const remaining = Math.floor((toleranceMs - (nextMs - nowMs)) / intervalMs + 1 + 1e-6);
  return {
    allowed: true,
    arrivalMs: nextMs,
    remaining: Math.max(0, remaining),
    retryAfterMs: 0,
    resetMs: nextMs - nowMs,
  };
}
