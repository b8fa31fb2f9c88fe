import { UnreadableFile } from "./package-list.ts";

const hashMagic = 0x0006_1561;
const pageHeaderBytes = 26;
/** Page types (Berkeley DB's dbinc/db_page.h). */
const unsortedHashPage = 2;
const hashPage = 13;
const overflowPage = 7;
/** Item types. */
const keyOrData = 1;
const offPage = 3;
const offPageBytes = 12;
/** Beside the packages, under the key 0, rpm keeps the number it gave last. */
const counterKey = 0;

/**
 * The headers in a `Packages` of Berkeley DB's hash kind: pages of key and data in turns; data that is longer than a page lies
 * in a chain of overflow pages. The byte order is the writer's.
 */
export function* readRpmBdb(bytes: Buffer): Generator<Buffer> {
  const order = orderOf(bytes);
  const u16 = (at: number) => (order === "LE" ? bytes.readUInt16LE(at) : bytes.readUInt16BE(at));
  const u32 = (at: number) => (order === "LE" ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at));
  const pageBytes = u32(20);
  const isPower = (pageBytes & (pageBytes - 1)) === 0;
  if (pageBytes < 512 || pageBytes > 65_536 || !isPower) throw new UnreadableFile("its page size is not one");
  const pages = Math.floor(bytes.length / pageBytes);
  const usedOverflow = new Set<number>();

  function chain(first: number, length: number): Buffer {
    const parts: Buffer[] = [];
    let left = length;
    for (let page = first; left > 0; ) {
      if (page === 0 || page >= pages || usedOverflow.has(page))
        throw new UnreadableFile("a chain of its pages is damaged");
      usedOverflow.add(page); // each belongs to one value: also what ends a ring
      const start = page * pageBytes;
      const here = u16(start + 22);
      if (bytes[start + 25] !== overflowPage || here > pageBytes - pageHeaderBytes || here > left || here === 0) {
        throw new UnreadableFile("a chain of its pages is damaged");
      }
      parts.push(bytes.subarray(start + pageHeaderBytes, start + pageHeaderBytes + here));
      left -= here;
      page = u32(start + 16);
    }
    return Buffer.concat(parts);
  }

  for (let page = 1; page < pages; page++) {
    const start = page * pageBytes;
    const type = bytes[start + 25];
    if (type !== hashPage && type !== unsortedHashPage) continue;
    const items = u16(start + 20);
    if (pageHeaderBytes + items * 2 > pageBytes) throw new UnreadableFile("a page in it is damaged");
    const offsetOf = (item: number) => u16(start + pageHeaderBytes + item * 2);
    for (let item = 0; item + 1 < items; item += 2) {
      const at = offsetOf(item + 1);
      const keyAt = offsetOf(item);
      // Items are laid down from the page's end: one reaches up to where the one before it begins.
      if (at < pageHeaderBytes + items * 2 || keyAt <= at || keyAt + 5 > pageBytes) {
        throw new UnreadableFile("a page in it is damaged");
      }
      if (u32(start + keyAt + 1) === counterKey) continue;
      const kind = bytes[start + at];
      if (kind === offPage && keyAt - at === offPageBytes) yield chain(u32(start + at + 4), u32(start + at + 8));
      else if (kind === keyOrData) yield bytes.subarray(start + at + 1, start + keyAt);
      else throw new UnreadableFile("it holds items of a kind that rpm does not write");
    }
  }
}

function orderOf(bytes: Buffer): "LE" | "BE" {
  if (bytes.length >= 512 && bytes.readUInt32LE(12) === hashMagic) return "LE";
  if (bytes.length >= 512 && bytes.readUInt32BE(12) === hashMagic) return "BE";
  throw new UnreadableFile("it is not a Berkeley DB hash");
}
