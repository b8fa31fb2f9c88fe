import { createHash } from "node:crypto";
import { ServiceError } from "@unkey/base";
import type { AssetDeclaration } from "./domain/asset.ts";

/** Reads `chunks` to the end and compares length and digest with what was declared. */
export async function proveContent(
  { digest, sizeBytes }: AssetDeclaration,
  chunks: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  const hash = createHash("sha256");
  let received = 0;
  for await (const chunk of until(signal, chunks)) {
    received += chunk.length;
    if (received > sizeBytes) {
      throw new ServiceError("ASSET_SIZE_MISMATCH", `more than the declared ${sizeBytes} bytes arrived`);
    }
    hash.update(chunk);
  }
  if (received !== sizeBytes) {
    throw new ServiceError("ASSET_SIZE_MISMATCH", `${received} bytes arrived, ${sizeBytes} were declared`);
  }
  const actual = `sha256:${hash.digest("hex")}`;
  if (actual !== digest) {
    throw new ServiceError("ASSET_DIGEST_MISMATCH", `the bytes have the digest ${actual}, ${digest} was declared`);
  }
}

/** `chunks` until they end; throws when `signal` aborts, also while none comes. */
export async function* until(signal: AbortSignal, chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  aborted.catch(() => undefined);
  const onAbort = () => reject(signal.reason as Error);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    const source = chunks[Symbol.asyncIterator]();
    for (;;) {
      signal.throwIfAborted();
      const next = await Promise.race([source.next(), aborted]);
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
