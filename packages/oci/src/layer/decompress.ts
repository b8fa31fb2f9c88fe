import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { constants, createGunzip, createZstdDecompress, type Gunzip, type ZstdDecompress } from "node:zlib";
import { kib, mib } from "@unkey/base";
import { InvalidInput } from "../invalid-input.ts";
import { checkBytes, type ImageLimits } from "./limits.ts";

const outputChunkBytes = 512 * kib;
/** Chunks that zlib's thread may be ahead of the parser. */
const outputQueueBytes = 4 * outputChunkBytes;
const ratioFreeBytes = 64 * mib;
/** Memory that a zstd stream may ask for: what every level but the last two of `zstd --ultra` fits in. */
const zstdWindowLog = 25;

export type Compression = "none" | "gzip" | "zstd";

/**
 * Which compression a stream begins with. It is told by the bytes, not by the media type, as other engines do: images with a wrong media
 * type exist. `chunks` is the whole stream again; what the source throws before its first four bytes is thrown here.
 */
export async function tellCompression(
  source: AsyncIterable<Uint8Array>,
): Promise<{ compression: Compression; chunks: AsyncGenerator<Buffer> }> {
  const rest = source[Symbol.asyncIterator]();
  const head = await firstBytes(rest);
  return { compression: compressionOf(head), chunks: prefixed(head, rest) };
}

/** Of a stream that begins with `head`: at least four bytes of it unless it is shorter. */
export function compressionOf(head: Buffer): Compression {
  if (head.length < 4) return "none";
  if (head.readUInt16BE(0) === 0x1f8b) return "gzip";
  const isSkippable = (head.readUInt32LE(0) & 0xfffffff0) >>> 0 === 0x184d2a50;
  return isSkippable || head.readUInt32BE(0) === 0x28b52ffd ? "zstd" : "none";
}

/**
 * What a stream of that compression decompresses to, in this process. Zeros behind the end of a gzip stream are nothing to it. Throws
 * InvalidInput on damaged compression, and what the stream throws.
 */
export function decompress(chunks: AsyncIterable<Buffer>, compression: Compression): AsyncIterable<Buffer> {
  return compression === "none" ? chunks : through(chunks, createDecompressor(compression));
}

export function createDecompressor(compression: "gzip" | "zstd"): Gunzip | ZstdDecompress {
  const options = { chunkSize: outputChunkBytes, readableHighWaterMark: outputQueueBytes };
  if (compression === "gzip") return createGunzip(options);
  return createZstdDecompress({ ...options, params: { [constants.ZSTD_d_windowLogMax]: zstdWindowLog } });
}

/** What zlib's error says of a stream; undefined when it says nothing of it. */
export function compressionDamage(code: string, message: string): InvalidInput | undefined {
  if (!/^(Z_|ZSTD_|ERR_ZLIB)/.test(code)) return undefined;
  return new InvalidInput(
    /window/i.test(code)
      ? `its zstd window is over ${2 ** (zstdWindowLog - 20)} MiB`
      : `its compression is damaged (${message})`,
  );
}

/** Passes on what a layer of `sizeBytes` unpacks to. Throws IMAGE_TOO_LARGE on a bomb. */
export function* bounded(
  chunks: Iterable<Buffer>,
  { sizeBytes, limits }: { readonly sizeBytes: number; readonly limits: ImageLimits },
): Generator<Buffer> {
  const mostBytes = Math.min(limits.uncompressedBytes, Math.max(ratioFreeBytes, sizeBytes * limits.compressionRatio));
  let bytes = 0;
  for (const chunk of chunks) {
    bytes += chunk.length;
    checkBytes("the layer unpacks to", bytes, mostBytes);
    yield chunk;
  }
}

async function* through(source: AsyncIterable<Buffer>, stream: Gunzip | ZstdDecompress): AsyncGenerator<Buffer> {
  const feeding = pipeline(Readable.from(source, { objectMode: false }), stream);
  feeding.catch(() => {}); // told below, when the reader of `stream` has come to it
  try {
    for await (const chunk of stream as AsyncIterable<Buffer>) yield chunk;
    await feeding;
  } catch (error) {
    throw (error instanceof Error && "code" in error && compressionDamage(String(error.code), error.message)) || error;
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
  try {
    if (head.length > 0) yield head;
    for (let next = await source.next(); next.done !== true; next = await source.next()) yield viewOf(next.value);
  } finally {
    await source.return?.();
  }
}

function viewOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
