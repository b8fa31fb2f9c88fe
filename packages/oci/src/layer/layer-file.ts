import { readSync } from "node:fs";
import { kib } from "@unkey/base";
import type { Compression } from "./decompress.ts";
import { inflate } from "./inflate.ts";

const readBytes = 256 * kib;

/** A layer as it travels, to be read from an open file, a pipe or a socket that blocks. */
export interface LayerFile {
  readonly fd: number;
  readonly compression: Compression;
}

/**
 * The tar stream of a layer, in chunks that hold until the next is asked for; the file is read to its end. It waits without letting
 * others run, for a process that has nothing else to do: what goes through the event loop costs as much again as all else that is
 * done with its bytes. Throws InvalidInput on damaged compression.
 */
export function readTar({ fd, compression }: LayerFile): Generator<Buffer> {
  return compression === "none" ? reads(fd) : inflate(reads(fd), compression);
}

/** Everything to the end of a file that blocks, in whole buffers. */
function* reads(fd: number): Generator<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(readBytes);
  for (let isOpen = true; isOpen; ) {
    let filled = 0;
    while (filled < readBytes) {
      const count = readSync(fd, buffer, filled, readBytes - filled, null);
      isOpen = count > 0;
      if (!isOpen) break;
      filled += count;
    }
    if (filled > 0) yield buffer.subarray(0, filled);
  }
}
