/** Tells watchers in this process that something changed; other replicas' changes are found by looking again. */
export class Changes {
  readonly #waiting = new Map<string, Set<() => void>>();

  notify(key: string): void {
    for (const wake of this.#waiting.get(key) ?? []) wake();
  }

  /** Resolves at the next notification for `key`, after `timeoutMs`, or when the signal is aborted. */
  async next(key: string, timeoutMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const waiting = this.#waiting.get(key) ?? new Set();
    this.#waiting.set(key, waiting.add(resolve));
    const timer = setTimeout(resolve, timeoutMs);
    signal.addEventListener("abort", resolve, { once: true });
    await promise;
    clearTimeout(timer);
    signal.removeEventListener("abort", resolve);
    waiting.delete(resolve);
    if (waiting.size === 0 && this.#waiting.get(key) === waiting) this.#waiting.delete(key);
  }
}
