import type { Clock } from "@unkey/base";
import type { Logger } from "@unkey/daemon";

/**
 * Calls `tick` at every whole multiple of `intervalMs` of the wall clock, so that whoever counts samples knows how many
 * are due between two instants. A tick that comes late makes those that it covers be skipped; one that fails is logged.
 * Disposal ends it.
 */
export function onWallClock(
  intervalMs: number,
  tick: () => void,
  { clock, log }: { readonly clock: Clock; readonly log: Logger },
): AsyncDisposable {
  const stop = new AbortController();
  const loop = async () => {
    for (;;) {
      let nowMs = clock.nowMs();
      const dueAtMs = nowMs - (nowMs % intervalMs) + intervalMs;
      // A timer may fire a little early; a clock that was set back must not be waited for.
      while (nowMs < dueAtMs && dueAtMs - nowMs <= intervalMs) {
        try {
          await clock.sleep(dueAtMs - nowMs, stop.signal);
        } catch {
          return; // disposed while waiting
        }
        nowMs = clock.nowMs();
      }
      try {
        tick();
      } catch (error) {
        log.error("a tick failed", { error });
      }
    }
  };
  const running = loop();
  return {
    [Symbol.asyncDispose]: async () => {
      stop.abort(new Error("stopped"));
      await running;
    },
  };
}
