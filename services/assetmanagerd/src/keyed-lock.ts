/** Runs bodies of the same key one after the other, of different keys side by side. */
export class KeyedLock {
  readonly #tails = new Map<string, Promise<unknown>>();

  run<T>(key: string, body: () => Promise<T>): Promise<T> {
    return this.runAll([key], body);
  }

  /** Holds several keys at once. Whoever holds one asks for no other, so nobody waits in a circle. */
  async runAll<T>(keys: Iterable<string>, body: () => Promise<T>): Promise<T> {
    const held = [...keys];
    const before = held.map((key) => this.#tails.get(key) ?? Promise.resolve());
    const result = Promise.all(before).then(body);
    const tail = result.catch(() => undefined);
    for (const key of held) this.#tails.set(key, tail);
    try {
      return await result;
    } finally {
      for (const key of held) if (this.#tails.get(key) === tail) this.#tails.delete(key);
    }
  }
}
