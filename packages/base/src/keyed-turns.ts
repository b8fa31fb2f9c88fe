/** Lets those who name the same key through one after the other, in the order in which they asked. */
export class KeyedTurns {
  readonly #last = new Map<string, Promise<unknown>>();

  /**
   * Resolves when everybody before has ended, on several keys when these are all free; dispose it to let the next one go on. Whoever
   * holds one asks for no other, so nobody waits in a circle. Rejects with the signal's reason when that ends first: the turn
   * is then given up.
   */
  async take(keys: string | Iterable<string>, signal?: AbortSignal): Promise<Disposable> {
    const mine = Promise.withResolvers<void>();
    const wanted = typeof keys === "string" ? [keys] : [...keys];
    const before = Promise.all(wanted.map((key) => this.#last.get(key) ?? Promise.resolve()));
    const upToMine = before.then(() => mine.promise);
    for (const key of wanted) this.#last.set(key, upToMine);
    void this.#forget(wanted, upToMine);
    try {
      await settledOrAborted(before, signal);
    } catch (error) {
      mine.resolve();
      throw error;
    }
    return { [Symbol.dispose]: mine.resolve };
  }

  /** Runs `body` in a turn. */
  async run<T>(keys: string | Iterable<string>, body: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    using _turn = await this.take(keys, signal);
    return await body();
  }

  async #forget(keys: readonly string[], ended: Promise<unknown>): Promise<void> {
    await ended;
    for (const key of keys) if (this.#last.get(key) === ended) this.#last.delete(key);
  }
}

async function settledOrAborted(promise: Promise<unknown>, signal: AbortSignal | undefined): Promise<void> {
  signal?.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const onAbort = (): void => aborted.reject(signal?.reason);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([promise, aborted.promise]);
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
}
