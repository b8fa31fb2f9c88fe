import { InvalidInput } from "../invalid-input.ts";
import { integerOf, type PaxRecords, textOf } from "./pax-records.ts";
import { blockBytes, decodeNumber } from "./tar-header.ts";

/*
 * The four ways in which tar says where a sparse file has data. GNU tar manual, "Storing Sparse Files":
 *   old GNU     typeflag S: four pairs in the header, 21 in each block that continues it
 *   PAX 0.0     repeated records GNU.sparse.offset and GNU.sparse.numbytes
 *   PAX 0.1     one record GNU.sparse.map
 *   PAX 1.0     decimal lines at the start of the content, filled up to whole blocks
 */

export interface DataRange {
  readonly offset: number;
  readonly length: number;
}

/** More is no file that anybody made, but an attempt to spend memory. */
const maxRanges = 65_536;

export interface SparseFile {
  readonly sizeBytes: number;
  readonly data: readonly DataRange[];
}

/** Numbers of a map in the order in which they come, pair by pair. */
export class SparseMap {
  readonly #numbers: number[] = [];

  add(value: number): void {
    if (this.#numbers.length >= 2 * maxRanges)
      throw new InvalidInput(`a sparse file has over ${maxRanges} data ranges`);
    this.#numbers.push(value);
  }

  /**
   * The ranges, joined where they touch. Throws InvalidInput unless they are ascending, apart, inside the file and together as
   * long as the content that follows.
   */
  finish(sizeBytes: number, storedBytes: number): SparseFile {
    const data: { offset: number; length: number }[] = [];
    let end = 0;
    let total = 0;
    if (this.#numbers.length % 2 !== 0) throw malformed("has an offset without a length");
    for (let at = 0; at < this.#numbers.length; at += 2) {
      const offset = this.#numbers[at] ?? 0;
      const length = this.#numbers[at + 1] ?? 0;
      if (offset < end) throw malformed("is not in ascending order");
      if (offset + length > sizeBytes) throw malformed("reaches beyond the file");
      total += length;
      const last = data.at(-1);
      if (length > 0 && last !== undefined && offset === end) last.length += length;
      else if (length > 0) data.push({ offset, length });
      end = offset + length;
    }
    if (total !== storedBytes) throw malformed(`names ${total} bytes of ${storedBytes} in the archive`);
    return { sizeBytes, data };
  }
}

/** True when the block says that another block of the map follows. `at` is where its last pair ends. */
function readPairs(block: Buffer, from: number, count: number, map: SparseMap): boolean {
  for (let pair = 0; pair < count; pair++) {
    const at = from + pair * 24;
    if (block[at] === 0) break; // an unused slot
    for (const field of [at, at + 12]) {
      const value = decodeNumber(block, field, 12, "sparse map");
      if (value < 0) throw malformed("has a negative number");
      map.add(value);
    }
  }
  return block[from + count * 24] !== 0;
}

/** Reads the pairs of an old GNU header; tells the file's size and whether a block of the map follows. */
export function readSparseHeader(
  block: Buffer,
  map: SparseMap,
): { readonly sizeBytes: number; readonly more: boolean } {
  const more = readPairs(block, 386, 4, map);
  const sizeBytes = decodeNumber(block, 483, 12, "sparse file's size");
  if (sizeBytes < 0) throw malformed("has a negative size");
  return { sizeBytes, more };
}

/** Reads a block that continues an old GNU header; true when another one follows. */
export function readSparseExtension(block: Buffer, map: SparseMap): boolean {
  return readPairs(block, 0, 21, map);
}

/** The map that PAX records hold, or "in-content" for version 1.0; undefined when the file is not sparse. */
export function paxSparse(
  pax: PaxRecords | undefined,
): { map: SparseMap | "in-content"; sizeBytes: number } | undefined {
  if (pax === undefined || !pax.sparse) return undefined;
  const major = textOf(pax, "GNU.sparse.major") ?? "0";
  const minor = textOf(pax, "GNU.sparse.minor") ?? "0";
  const sizeBytes =
    integerOf(pax, "GNU.sparse.realsize", Number.MAX_SAFE_INTEGER) ??
    integerOf(pax, "GNU.sparse.size", Number.MAX_SAFE_INTEGER);
  if (sizeBytes === undefined) throw malformed("does not name the file's size");
  if (major === "1" && minor === "0") return { map: "in-content", sizeBytes };
  if (major !== "0" || (minor !== "0" && minor !== "1")) throw malformed(`has the unknown version ${major}.${minor}`);
  const map = new SparseMap();
  const joined = textOf(pax, "GNU.sparse.map");
  const numbers = joined === undefined ? pax.sparsePairs : joined.split(",", 2 * maxRanges + 1);
  for (const text of numbers) map.add(decimal(text));
  const count = integerOf(pax, "GNU.sparse.numblocks", maxRanges);
  if (count !== undefined && 2 * count !== numbers.length)
    throw malformed(`does not have the ${count} ranges it announces`);
  return { map, sizeBytes };
}

/** Reads the map at the start of a PAX 1.0 file's content: a count, then an offset and a length for each range. */
export class InContentMap {
  readonly map = new SparseMap();
  #line = "";
  #missing = -1;

  /** Takes one block; true when the map is complete. */
  addBlock(block: Buffer): boolean {
    for (let at = 0; at < blockBytes; at++) {
      const byte = block[at] ?? 0;
      if (byte !== 0x0a) {
        if (this.#line.length >= 20) throw malformed("has a number that does not end");
        this.#line += String.fromCharCode(byte);
        continue;
      }
      const value = decimal(this.#line);
      this.#line = "";
      if (this.#missing < 0) {
        if (value > maxRanges) throw new InvalidInput(`a sparse file has over ${maxRanges} data ranges`);
        this.#missing = 2 * value;
      } else {
        this.map.add(value);
        this.#missing--;
      }
      if (this.#missing === 0) return true;
    }
    return false;
  }
}

function decimal(text: string): number {
  const value = Number(text);
  if (!/^\d{1,16}$/.test(text) || !Number.isSafeInteger(value)) throw malformed("holds something that is not a number");
  return value;
}

function malformed(what: string): InvalidInput {
  return new InvalidInput(`a sparse file's map ${what}`);
}
