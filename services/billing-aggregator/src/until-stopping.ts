/** Yields what `items` yields until it ends or `stopping` is aborted: then the stream ends in order, between two items. */
export async function* untilStopping<T>(items: AsyncIterable<T>, stopping: AbortSignal): AsyncGenerator<T> {
  const iterator = items[Symbol.asyncIterator]();
  const stopped = Promise.withResolvers<{ readonly done: true; readonly value: undefined }>();
  const onStop = () => stopped.resolve({ done: true, value: undefined });
  if (stopping.aborted) onStop();
  else stopping.addEventListener("abort", onStop, { once: true });
  try {
    for (;;) {
      const next = await Promise.race([stopped.promise, iterator.next()]);
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    stopping.removeEventListener("abort", onStop);
    // Not awaited: it would wait for an item that may never come.
    void iterator.return?.().catch(() => undefined);
  }
}
