/**
 * The values of all `sources` as they come, until all have ended. Each source is asked for its next value only when its
 * last one was taken, so a slow reader slows the sources instead of filling memory.
 */
export async function* merge<T>(sources: readonly AsyncGenerator<T>[]): AsyncGenerator<T> {
  const ask = (source: AsyncGenerator<T>) => source.next().then((result) => ({ source, result }));
  const asked = new Map(sources.map((source) => [source, ask(source)]));
  try {
    while (asked.size > 0) {
      const { source, result } = await Promise.race(asked.values());
      if (result.done) {
        asked.delete(source);
        continue;
      }
      asked.set(source, ask(source));
      yield result.value;
    }
  } finally {
    // Whoever leaves early has ended what the sources wait for; their last words are of no interest.
    for (const source of asked.keys()) source.return(undefined).catch(() => undefined);
    for (const waiting of asked.values()) waiting.catch(() => undefined);
  }
}
