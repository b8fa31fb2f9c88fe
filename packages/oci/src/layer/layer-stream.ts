import { createReadStream } from "node:fs";
import { pipeline } from "node:stream";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { mib } from "@unkey/base";
import type { Digest } from "../digest.ts";
import { InvalidInput } from "../invalid-input.ts";
import { checkBytes, type ImageLimits } from "./limits.ts";

/** A layer on local disk, its digest already checked. */
export interface LayerBlob {
  readonly digest: Digest;
  readonly path: string;
  readonly sizeBytes: number;
  /** Digest of the uncompressed tar stream, from the image's config. */
  readonly diffId: Digest;
}

const readChunkBytes = 256 * 1024;
const ratioFreeBytes = 64 * mib;

/**
 * The tar stream of a layer. The compression is told by the bytes, not by the media type, as other engines do: images
 * with a wrong media type exist. Throws InvalidInput on damaged compression and IMAGE_TOO_LARGE on a bomb.
 */
export async function* layerStream(blob: LayerBlob, limits: ImageLimits, signal: AbortSignal): AsyncGenerator<Buffer> {
  signal.throwIfAborted();
  const magic = await firstBytes(blob.path);
  const source = createReadStream(blob.path, { highWaterMark: readChunkBytes });
  const stream =
    magic.readUInt16BE(0) === 0x1f8b
      ? pipeline(source, createGunzip({ chunkSize: readChunkBytes }), () => {})
      : magic.readUInt32BE(0) === 0x28b52ffd || (magic.readUInt32LE(0) & 0xfffffff0) >>> 0 === 0x184d2a50
        ? pipeline(source, createZstdDecompress({ chunkSize: readChunkBytes }), () => {})
        : source;
  let bytes = 0;
  try {
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      signal.throwIfAborted(); // per chunk: a stream that is given the signal may fail before anybody listens
      bytes += chunk.length;
      checkBytes("the layer unpacks to", bytes, limits.uncompressedBytes);
      if (bytes > ratioFreeBytes) {
        checkBytes("the layer unpacks to", bytes, Math.max(ratioFreeBytes, blob.sizeBytes * limits.compressionRatio));
      }
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Error && "code" in error && /^(Z_|ZSTD_|ERR_ZLIB)/.test(String(error.code))) {
      throw new InvalidInput(`its compression is damaged (${error.message})`);
    }
    throw error;
  } finally {
    source.destroy();
  }
}

async function firstBytes(path: string): Promise<Buffer> {
  const bytes = Buffer.alloc(4);
  for await (const chunk of createReadStream(path, { end: 3 }) as AsyncIterable<Buffer>) {
    chunk.copy(bytes);
  }
  return bytes;
}
