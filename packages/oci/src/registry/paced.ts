import { type Clock, kib } from "@unkey/base";

/** A transfer that brings less than `minBytes` in `windowNs` of waiting for it holds a build's place for nothing. */
const windowNs = 60_000_000_000n;
const minBytes = 32 * kib;

/**
 * Passes chunks on and calls `tooSlow` for what to throw when they drip. Only the time that is spent waiting for the other end counts,
 * not the time that our consumer takes.
 */
export async function* paced(
  chunks: AsyncIterable<Uint8Array>,
  clock: Clock,
  tooSlow: () => Error,
): AsyncGenerator<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]();
  let waitedNs = 0n;
  let bytes = 0;
  try {
    for (;;) {
      const startedNs = clock.monotonicNs();
      const next = await iterator.next();
      if (next.done === true) return;
      waitedNs += clock.monotonicNs() - startedNs;
      bytes += next.value.length;
      if (waitedNs > windowNs) {
        if (bytes < minBytes) throw tooSlow();
        waitedNs = 0n;
        bytes = 0;
      }
      yield next.value;
    }
  } finally {
    await iterator.return?.();
  }
}
