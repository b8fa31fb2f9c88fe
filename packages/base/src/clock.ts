import { setTimeout as delay } from "node:timers/promises";

/** Time as a port, so that tests and the simulator own it. */
export interface Clock {
  /** Milliseconds since the Unix epoch; may step when the host's clock is set. */
  nowMs(): number;
  /** Nanoseconds from an arbitrary start; never steps back. Durations are differences of these. */
  monotonicNs(): bigint;
  /** Resolves after `ms`; rejects with the signal's reason when aborted first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

export const systemClock: Clock = {
  nowMs: () => Date.now(),
  monotonicNs: () => process.hrtime.bigint(),
  sleep: async (ms, signal) => {
    try {
      await delay(ms, undefined, signal ? { signal } : {});
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    }
  },
};
