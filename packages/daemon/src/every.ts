import { type Clock, systemClock } from "@unkey/base";
import type { Logger } from "./log.ts";

export interface EveryOptions {
  /** Names the pass in logs. */
  readonly name: string;
  readonly log: Logger;
  readonly clock?: Clock;
  /** Also run one pass at once instead of waiting for the first interval. */
  readonly atStart?: boolean;
}

/**
 * Runs `pass` every `intervalMs` on a schedule that does not drift: the n-th pass is due n intervals after the start.
 * Passes never overlap; a pass that overruns makes the due times it covered be skipped. A failed pass is logged, and
 * the next one comes in its time. Disposal aborts the pass's signal and waits for it to return.
 */
export function everyMs(
  intervalMs: number,
  pass: (signal: AbortSignal) => Promise<void> | void,
  options: EveryOptions,
): AsyncDisposable {
  const { name, log, clock = systemClock } = options;
  const stop = new AbortController();
  const intervalNs = BigInt(Math.round(intervalMs * 1e6));
  if (intervalNs <= 0n) throw new RangeError(`${name}: an interval of ${intervalMs} ms`);

  const runPass = async () => {
    try {
      await pass(stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) log.error("pass failed", { pass: name, error });
    }
  };
  const loop = async () => {
    const startNs = clock.monotonicNs();
    if (options.atStart) await runPass();
    for (let due = 1n; !stop.signal.aborted; due++) {
      const passedNs = clock.monotonicNs() - startNs;
      // A timer may fire a little early, so the next due time comes from the last one, not from the clock alone.
      const current = passedNs / intervalNs;
      if (current >= due) due = current + 1n;
      try {
        await clock.sleep(Math.ceil(Number(due * intervalNs - passedNs) / 1e6), stop.signal);
      } catch {
        return; // disposed while waiting
      }
      await runPass();
    }
  };
  const running = loop();
  return {
    [Symbol.asyncDispose]: async () => {
      stop.abort(new Error(`${name}: stopped`));
      await running;
    },
  };
}
