import type { BuildId } from "@unkey/base";
import type { StepBytes } from "./ports.ts";

/** Follows one build; `next` resolves when it has changed since the last `next`. */
export interface BuildWatch extends Disposable {
  next(signal: AbortSignal): Promise<void>;
}

/** Progress of one step is shown at most so often. */
const progressIntervalMs = 200;

/** Tells those who watch that a build has changed; holds how far the running steps are, which is not worth a write. */
export class BuildFeed {
  readonly #listeners = new Map<BuildId, Set<() => void>>();
  readonly #progress = new Map<BuildId, StepBytes & { readonly toldAtMs: number }>();

  /** The build's row or log has changed. */
  changed(buildId: BuildId): void {
    for (const listener of this.#listeners.get(buildId) ?? []) listener();
  }

  setProgress(buildId: BuildId, bytes: StepBytes): void {
    const nowMs = performance.now();
    const toldAtMs = this.#progress.get(buildId)?.toldAtMs ?? Number.NEGATIVE_INFINITY;
    const due = nowMs - toldAtMs >= progressIntervalMs;
    this.#progress.set(buildId, { ...bytes, toldAtMs: due ? nowMs : toldAtMs });
    if (due) this.changed(buildId);
  }

  /** Bytes of the running step; undefined when it counts none. */
  progress(buildId: BuildId): StepBytes | undefined {
    return this.#progress.get(buildId);
  }

  clearProgress(buildId: BuildId): void {
    this.#progress.delete(buildId);
  }

  watch(buildId: BuildId): BuildWatch {
    let pending = false;
    let wake: (() => void) | undefined;
    const listener = (): void => {
      pending = true;
      wake?.();
    };
    const listeners = this.#listeners.get(buildId) ?? new Set();
    this.#listeners.set(buildId, listeners.add(listener));
    return {
      next: async (signal) => {
        if (!pending) {
          const woken = Promise.withResolvers<void>();
          wake = woken.resolve;
          const onAbort = (): void => woken.reject(signal.reason);
          signal.throwIfAborted();
          signal.addEventListener("abort", onAbort, { once: true });
          try {
            await woken.promise;
          } finally {
            signal.removeEventListener("abort", onAbort);
            wake = undefined;
          }
        }
        pending = false;
      },
      [Symbol.dispose]: () => {
        listeners.delete(listener);
        if (listeners.size === 0) this.#listeners.delete(buildId);
      },
    };
  }
}
