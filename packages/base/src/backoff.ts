export interface Backoff {
  /** Delay before the first retry. */
  readonly baseMs: number;
  /** No delay is longer. */
  readonly maxMs: number;
}

/**
 * How long to wait before retry number `attempt` (from 0): exponential with full jitter, so that callers that failed
 * together do not come back together (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 * `random` yields a number in [0, 1).
 */
export function backoffDelayMs(backoff: Backoff, attempt: number, random: () => number = Math.random): number {
  const ceilingMs = Math.min(backoff.maxMs, backoff.baseMs * 2 ** Math.min(attempt, 52));
  return Math.ceil(random() * ceilingMs);
}
