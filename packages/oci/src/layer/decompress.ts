import { spawn } from "node:child_process";
import { once } from "node:events";
import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { constants, createGunzip, createZstdDecompress } from "node:zlib";
import { isErrno, kib, mib, ServiceError } from "@unkey/base";
import { InvalidInput } from "../invalid-input.ts";
import { checkBytes, type ImageLimits } from "./limits.ts";

const outputChunkBytes = 512 * kib;
/** Chunks that zlib's thread may be ahead of the parser. */
const outputQueueBytes = 4 * outputChunkBytes;
const ratioFreeBytes = 64 * mib;
/** Memory that a zstd stream may ask for: what every level but the last two of `zstd --ultra` fits in. */
const zstdWindowLog = 25;
const maxWords = 1024;

export interface DecompressOptions {
  /** Of all chunks. */
  readonly sizeBytes: number;
  readonly limits: ImageLimits;
  /**
   * Who reads gzip: `igzip`, a process that takes two fifths of the processor, for processes that are confined with what they start; `zlib`,
   * which is in this process, for others.
   */
  readonly gunzip: "igzip" | "zlib";
  readonly signal: AbortSignal;
}

/**
 * The tar stream of a layer that arrives as `chunks`. The compression is told by the bytes, not by the media type, as other
 * engines do: images with a wrong media type exist. Zeros behind the end of a gzip stream are nothing to it. Throws InvalidInput on
 * damaged compression, IMAGE_TOO_LARGE on a bomb, and ROOTFS_TOOL_MISSING.
 */
export async function* decompress(
  chunks: AsyncIterable<Uint8Array>,
  { sizeBytes, limits, gunzip, signal }: DecompressOptions,
): AsyncGenerator<Buffer> {
  signal.throwIfAborted();
  const source = chunks[Symbol.asyncIterator]();
  try {
    const head = await firstBytes(source);
    const magic = head.length < 4 ? Buffer.alloc(4) : head.subarray(0, 4);
    const options = { chunkSize: outputChunkBytes, readableHighWaterMark: outputQueueBytes };
    const zstd = { ...options, params: { [constants.ZSTD_d_windowLogMax]: zstdWindowLog } };
    const all = prefixed(head, source);
    const outputs = {
      none: () => all,
      gzip: () => (gunzip === "igzip" ? throughIgzip(all) : through(all, createGunzip(options))),
      zstd: () => through(all, createZstdDecompress(zstd)),
    };
    let bytes = 0;
    for await (const chunk of outputs[compressionOf(magic)]()) {
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

function compressionOf(magic: Buffer): "none" | "gzip" | "zstd" {
  if (magic.readUInt16BE(0) === 0x1f8b) return "gzip";
  const isSkippable = (magic.readUInt32LE(0) & 0xfffffff0) >>> 0 === 0x184d2a50;
  return isSkippable || magic.readUInt32BE(0) === 0x28b52ffd ? "zstd" : "none";
}

async function* throughIgzip(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const child = spawn("igzip", ["-dc"], { stdio: "pipe" });
  let words = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    words = (words + text).slice(-maxWords);
  });
  const ended = once(child, "close") as Promise<[number | null, NodeJS.Signals | null]>;
  const feeding = feed(source, child.stdin);
  for (const promise of [ended, feeding]) promise.catch(() => {}); // told below
  try {
    if (child.pid !== undefined) for await (const chunk of child.stdout as AsyncIterable<Buffer>) yield chunk;
    const [code, signal] = await ended.catch(rethrowMissing);
    await feeding;
    if (code === 1) throw new InvalidInput(`its compression is damaged (${words.replace(/^igzip: /, "").trim()})`);
    if (code !== 0) throw new Error(`igzip ended with ${signal ?? code}: ${words}`);
  } finally {
    child.kill("SIGKILL");
  }
}

/** Passes all chunks on, and drops those for which the other end has no use. Throws what the source throws. */
async function feed(source: AsyncIterable<Buffer>, input: Writable): Promise<void> {
  input.on("error", () => {}); // what it means is told by the end of the process
  const closed = new Promise<void>((resolve) => input.once("close", resolve));
  try {
    for await (const chunk of source) {
      if (input.destroyed || input.write(chunk)) continue;
      await Promise.race([closed, new Promise((resolve) => input.once("drain", resolve))]);
    }
  } finally {
    input.end();
  }
}

function rethrowMissing(error: unknown): never {
  if (!isErrno(error, "ENOENT")) throw error;
  throw new ServiceError("ROOTFS_TOOL_MISSING", "igzip is missing on the host: install isal", { cause: error });
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
