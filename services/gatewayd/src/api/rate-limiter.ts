import type { Clock } from "@unkey/base";
import { BoundedMap } from "../bounded-map.ts";
import { decideRate, type RateDecision, type RateLimit } from "../domain/rate-limit.ts";

const maxKeys = 100_000;

/** One limit, kept per key in this process. A key that is forgotten begins anew with its whole burst. */
export class RateLimiter {
  readonly limit: RateLimit;
  readonly #clock: Clock;
  readonly #arrivals = new BoundedMap<string, number>(maxKeys);

  constructor(limit: RateLimit, clock: Clock) {
    this.limit = limit;
    this.#clock = clock;
  }

  take(key: string): RateDecision {
    const nowMs = Number(this.#clock.monotonicNs()) / 1e6;
    const decision = decideRate(this.limit, this.#arrivals.get(key), nowMs);
    this.#arrivals.set(key, decision.arrivalMs);
    return decision;
  }
}

/** The fields of draft-ietf-httpapi-ratelimit-headers for one policy, and Retry-After (RFC 9110 §10.2.3) when refused. */
export function rateLimitHeaders({ burst, perSecond }: RateLimit, decision: RateDecision): [string, string][] {
  const seconds = (ms: number) => Math.ceil(ms / 1000);
  return [
    ["ratelimit-policy", `"api-key";q=${burst};w=${Math.ceil(burst / perSecond)}`],
    ["ratelimit", `"api-key";r=${decision.remaining};t=${seconds(decision.resetMs)}`],
    ...(decision.allowed
      ? []
      : [["retry-after", String(Math.max(1, seconds(decision.retryAfterMs)))] as [string, string]]),
  ];
}
