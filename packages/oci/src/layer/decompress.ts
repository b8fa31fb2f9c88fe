import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { constants, createGunzip, createZstdDecompress } from "node:zlib";
import { kib, mib } from "@unkey/base";
import { InvalidInput } from "../invalid-input.ts";
import { checkBytes, type ImageLimits } from "./limits.ts";

const outputChunkBytes = 512 * kib;
/** Chunks that zlib's thread may be ahead of the parser. */
const outputQueueBytes = 4 * outputChunkBytes;
const ratioFreeBytes = 64 * mib;
/** Memory that a zstd stream may ask for: what every level but the last two of `zstd --ultra` fits in. */
const zstdWindowLog = 25;

/**
 * The tar stream of a layer that arrives as `chunks`, `sizeBytes` of them in all. The compression is told by the bytes, not by
 * the media type, as other engines do: images with a wrong media type exist. Throws InvalidInput on damaged compression and
 * IMAGE_TOO_LARGE on a bomb.
 */
export async function* decompress(
  chunks: AsyncIterable<Uint8Array>,
  {
    sizeBytes,
    limits,
    signal,
  }: { readonly sizeBytes: number; readonly limits: ImageLimits; readonly signal: AbortSignal },
): AsyncGenerator<Buffer> {
  signal.throwIfAborted();
  const source = chunks[Symbol.asyncIterator]();
  try {
    const head = await firstBytes(source);
    const magic = head.length < 4 ? Buffer.alloc(4) : head.subarray(0, 4);
    const options = { chunkSize: outputChunkBytes, readableHighWaterMark: outputQueueBytes };
    const stream =
      magic.readUInt16BE(0) === 0x1f8b
        ? createGunzip(options)
        : magic.readUInt32BE(0) === 0x28b52ffd || (magic.readUInt32LE(0) & 0xfffffff0) >>> 0 === 0x184d2a50
          ? createZstdDecompress({ ...options, params: { [constants.ZSTD_d_windowLogMax]: zstdWindowLog } })
          : undefined;
    const output = stream === undefined ? prefixed(head, source) : through(prefixed(head, source), stream);
    let bytes = 0;
    for await (const chunk of output) {
      signal.throwIfAborted();
      bytes += chunk.length;
      checkBytes("the layer unpacks to", bytes, limits.uncompressedBytes);
      if (bytes > ratioFreeBytes) {
        checkBytes("the layer unpacks to", bytes, Math.max(ratioFreeBytes, sizeBytes * limits.compressionRatio));
      }
      yield chunk;
    }
  } finally {
    await source.return?.();
  }
}

async function* through(
  source: AsyncIterable<Buffer>,
  stream: ReturnType<typeof createGunzip> | ReturnType<typeof createZstdDecompress>,
): AsyncGenerator<Buffer> {
  const feeding = pipeline(Readable.from(source, { objectMode: false }), stream);
  feeding.catch(() => {}); // told below, when the reader of `stream` has come to it
  try {
    for await (const chunk of stream as AsyncIterable<Buffer>) yield chunk;
    await feeding;
  } catch (error) {
    if (error instanceof Error && "code" in error && /^(Z_|ZSTD_|ERR_ZLIB)/.test(String(error.code))) {
      throw new InvalidInput(
        /window/i.test(String(error.code))
          ? `its zstd window is over ${2 ** (zstdWindowLog - 20)} MiB`
          : `its compression is damaged (${error.message})`,
      );
    }
    throw error;
  } finally {
    stream.destroy();
    await feeding.catch(() => {}); // nobody reads the source any more
  }
}

/** The stream's start, at least four bytes of it unless it is shorter. */
async function firstBytes(source: AsyncIterator<Uint8Array>): Promise<Buffer> {
  let head: Buffer = Buffer.alloc(0);
  while (head.length < 4) {
    const next = await source.next();
    if (next.done === true) break;
    head = head.length === 0 ? viewOf(next.value) : Buffer.concat([head, next.value]);
  }
  return head;
}

async function* prefixed(head: Buffer, source: AsyncIterator<Uint8Array>): AsyncGenerator<Buffer> {
  if (head.length > 0) yield head;
  for (let next = await source.next(); next.done !== true; next = await source.next()) yield viewOf(next.value);
}

function viewOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
