import { blockBytes, direntBytes, fileTypes } from "./format.ts";
import type { Entries } from "./inode.ts";

/*
 * Directory blocks (Linux, fs/erofs/erofs_fs.h: erofs_dirent): entries of fixed size, then their names without
 * terminators. The kernel searches by bisection over the first names of blocks, then inside one, so all names, `.` and
 * `..` included, are sorted by their bytes.
 */

/** Names of a directory in stored order; a JavaScript sort of byte strings is a sort of bytes. */
export function sortedNames(children: ReadonlyMap<string, unknown>): string[] {
  return [".", "..", ...children.keys()].sort();
}

/** The index of each block's first name, and the bytes used in the last block. */
export function directoryBlocks(names: readonly string[]): { starts: number[]; lastBytes: number } {
  const starts = [0];
  let used = 0;
  for (let index = 0; index < names.length; index++) {
    const bytes = direntBytes + (names[index]?.length ?? 0);
    if (used + bytes > blockBytes) {
      starts.push(index);
      used = 0;
    }
    used += bytes;
  }
  return { starts, lastBytes: used };
}

export function directoryBytes(names: readonly string[]): number {
  const { starts, lastBytes } = directoryBlocks(names);
  return (starts.length - 1) * blockBytes + lastBytes;
}

/** Writes names[from..to) as one block of zeroed space. */
export function writeDirectoryBlock(
  into: Buffer,
  at: number,
  { names, inodes }: Entries,
  range: { readonly from: number; readonly to: number },
): void {
  let entryAt = at;
  let nameAt = at + direntBytes * (range.to - range.from);
  for (let index = range.from; index < range.to; index++) {
    const name = names[index] ?? "";
    const inode = inodes[index];
    if (inode === undefined) throw new RangeError("a directory has a name without an inode");
    const { nid } = inode;
    into.writeUInt32LE(nid % 2 ** 32, entryAt);
    into.writeUInt32LE(Math.floor(nid / 2 ** 32), entryAt + 4);
    into.writeUInt16LE(nameAt - at, entryAt + 8);
    into.writeUInt8(fileTypes[inode.node.kind].entryType, entryAt + 10);
    into.write(name, nameAt, "latin1");
    entryAt += direntBytes;
    nameAt += name.length;
  }
}
