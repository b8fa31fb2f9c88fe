import { constants } from "node:zlib";
import { kib } from "@unkey/base";
import { compressionDamage, createDecompressor } from "./decompress.ts";

/** Small enough to be still in the processor's cache when it is hashed and parsed. */
const outputBytes = 256 * kib;

const flushes = {
  gzip: { more: constants.Z_NO_FLUSH, end: constants.Z_FINISH },
  zstd: { more: constants.ZSTD_e_continue, end: constants.ZSTD_e_end },
} as const;

/**
 * What drives Node's compression streams (its lib/zlib.js, processChunkSync). It is not documented; what is, goes through the event
 * loop or takes whole streams at once (decision 24). The project's Node is pinned, and layer-file.test.ts
 * compares with what is documented.
 */
interface Engine {
  readonly _handle: {
    onerror: (message: string, errno: number, code: string) => void;
    writeSync(
      flush: number,
      input: Buffer,
      inputAt: number,
      inputBytes: number,
      output: Buffer,
      outputAt: number,
      outputBytes: number,
    ): void;
  };
  /** After a write: room left in the output, bytes left of the input. */
  readonly _writeState: Uint32Array;
}

/**
 * What `chunks` decompress to, without the event loop. What is handed out holds until the next is asked for, and so must each of
 * `chunks`. Zeros behind the end of a gzip stream are nothing to it, nor is anything behind a zstd frame that is no frame. Throws
 * InvalidInput on damaged compression.
 */
export function* inflate(chunks: Iterable<Buffer>, compression: "gzip" | "zstd"): Generator<Buffer> {
  const stream = createDecompressor(compression);
  const { _handle: handle, _writeState: left } = stream as unknown as Engine;
  let failure: Error | undefined;
  // oxlint-disable-next-line unicorn/prefer-add-event-listener -- it is no event target
  handle.onerror = (message, _, code) => {
    failure = compressionDamage(code, message) ?? new Error(`zlib failed: ${message} (${code})`);
  };
  const output = Buffer.allocUnsafeSlow(outputBytes);
  let filled = 0;
  function* take(input: Buffer, flush: number): Generator<Buffer> {
    for (let at = 0; ; ) {
      handle.writeSync(flush, input, at, input.length - at, output, filled, outputBytes - filled);
      if (failure !== undefined) throw failure;
      const [room = 0, untaken = 0] = left;
      at = input.length - untaken;
      filled = outputBytes - room;
      if (room > 0) return; // all is taken, but for what lies behind the end
      yield output;
      filled = 0;
    }
  }
  try {
    for (const chunk of chunks) yield* take(chunk, flushes[compression].more);
    yield* take(Buffer.alloc(0), flushes[compression].end);
    if (filled > 0) yield output.subarray(0, filled);
  } finally {
    stream.destroy();
  }
}
