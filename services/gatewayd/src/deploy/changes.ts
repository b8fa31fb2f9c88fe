/** Tells watchers in this process that something changed; other replicas' changes are found by looking again. */
export class Changes {
  readonly #waiting = new Map<string, Set<() => void>>();

  notify(key: string): void {
    for (const wake of this.#waiting.get(key) ?? []) wake();
  }

  /**
   * Resolves at the next notification for `key`, after `timeoutMs`, or when the signal is aborted. Call it before
   * looking, await it after: a change in between is not missed.
   */
  async next(key: string, timeoutMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    const changed = Promise.withResolvers<void>();
    const wake = () => changed.resolve();
    const waiting = this.#waiting.get(key) ?? new Set();
    this.#waiting.set(key, waiting.add(wake));
    const timer = setTimeout(wake, timeoutMs);
    signal.addEventListener("abort", wake, { once: true });
    await changed.promise;
    clearTimeout(timer);
    signal.removeEventListener("abort", wake);
    waiting.delete(wake);
    if (waiting.size === 0 && this.#waiting.get(key) === waiting) this.#waiting.delete(key);
  }
}
