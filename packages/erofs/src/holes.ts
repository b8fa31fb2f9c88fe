import { blockBytes } from "./format.ts";
import type { ErofsFile, ErofsRange } from "./tree.ts";

/** How a file with holes is cut: chunks of `blockBytes << bits`, of which only those with data are stored. */
export interface ChunkLayout {
  readonly bits: number;
  readonly chunkCount: number;
  /** Blocks of all stored chunks; the file's last chunk ends with the file's last block. */
  readonly storedBlocks: number;
}

const maxBits = 31;
const addressBytes = 4;
/** Keeps a file's list of addresses, which is held in memory while it is written, at 16 MiB. */
const maxChunks = 2 ** 22;

/** Throws a RangeError unless ranges ascend, do not overlap and stay in the file. */
export function checkRanges(file: ErofsFile): void {
  if (!Number.isSafeInteger(file.sizeBytes) || file.sizeBytes < 0) throw new RangeError("a file's size is no size");
  let end = 0;
  for (const { offset, length } of file.data ?? []) {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < end || length < 0) {
      throw new RangeError("a file's data ranges must ascend and not overlap");
    }
    end = offset + length;
  }
  if (end > file.sizeBytes) throw new RangeError("a file's data ranges must lie in it");
}

/** The layout that takes the least room, or undefined when chunks do not beat plain blocks. */
export function chunkLayout(file: ErofsFile): ChunkLayout | undefined {
  if (file.data === undefined) return undefined;
  const fileBlocks = Math.ceil(file.sizeBytes / blockBytes);
  let least = fileBlocks * blockBytes;
  let best: ChunkLayout | undefined;
  for (let bits = 0; bits <= maxBits; bits++) {
    const chunkBlocks = 2 ** bits;
    const chunkCount = Math.ceil(fileBlocks / chunkBlocks);
    if (chunkCount <= maxChunks) {
      let storedBlocks = 0;
      for (const { from, to } of storedRuns(file, bits)) storedBlocks += (to - from) / blockBytes;
      const cost = storedBlocks * blockBytes + chunkCount * addressBytes;
      if (cost < least) {
        least = cost;
        best = { bits, chunkCount, storedBlocks };
      }
    }
    if (chunkCount <= 1) break;
  }
  return best;
}

/** The byte intervals of a file that are stored, joined where they touch; each covers whole chunks or ends with the file's last block. */
export function* storedRuns(file: ErofsFile, bits: number): Generator<{ from: number; to: number }> {
  const chunk = blockBytes * 2 ** bits;
  const end = Math.ceil(file.sizeBytes / blockBytes) * blockBytes;
  let run: { from: number; to: number } | undefined;
  for (const { offset, length } of file.data ?? []) {
    if (length === 0) continue;
    const from = Math.floor(offset / chunk) * chunk;
    const to = Math.min(end, Math.ceil((offset + length) / chunk) * chunk);
    if (run !== undefined && from <= run.to) {
      run.to = to;
      continue;
    }
    if (run !== undefined) yield run;
    run = { from, to };
  }
  if (run !== undefined) yield run;
}

/** The addresses of a file's chunks when the stored ones follow each other from `startBlock`. */
export function writeChunkAddresses(
  into: Buffer,
  at: number,
  file: ErofsFile,
  layout: ChunkLayout,
  startBlock: number,
): void {
  const chunk = blockBytes * 2 ** layout.bits;
  into.fill(0xff, at, at + layout.chunkCount * addressBytes);
  let block = startBlock;
  for (const { from, to } of storedRuns(file, layout.bits)) {
    for (let start = from; start < to; start += chunk) {
      into.writeUInt32LE(block, at + (start / chunk) * addressBytes);
      block += Math.min(chunk, to - start) / blockBytes;
    }
  }
}

/** Pieces of [from, to) in order: data from the content stream, or zeros. `ranges` are taken from as they are passed. */
export function* pieces(
  ranges: readonly ErofsRange[],
  intervals: Iterable<{ readonly from: number; readonly to: number }>,
): Generator<{ data: boolean; length: number }> {
  let index = 0;
  for (const { from, to } of intervals) {
    let at = from;
    for (let range = ranges[index]; range !== undefined && range.offset < to; range = ranges[++index]) {
      if (range.length === 0) continue;
      if (range.offset > at) yield { data: false, length: range.offset - at };
      yield { data: true, length: range.length };
      at = range.offset + range.length;
    }
    if (to > at) yield { data: false, length: to - at };
  }
}

/** Bytes of a list of chunk addresses. */
export function chunkListBytes(layout: ChunkLayout): number {
  return layout.chunkCount * addressBytes;
}
