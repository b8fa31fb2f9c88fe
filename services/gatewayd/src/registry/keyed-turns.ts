/** Lets those who name the same key through one after the other. */
export class KeyedTurns {
  readonly #last = new Map<string, Promise<void>>();

  /** Resolves when everybody before has ended; dispose it to let the next one go on. */
  async take(key: string): Promise<Disposable> {
    const before = this.#last.get(key);
    const mine = Promise.withResolvers<void>();
    const upToMine = (before ?? Promise.resolve()).then(() => mine.promise);
    this.#last.set(key, upToMine);
    await before;
    return {
      [Symbol.dispose]: () => {
        mine.resolve();
        if (this.#last.get(key) === upToMine) this.#last.delete(key);
      },
    };
  }
}
