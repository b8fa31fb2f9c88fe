import { blockBytes, fileDataOf, maxInlineTailBytes } from "@unkey/erofs";
import type { TarEntry } from "../tar/tar-entry.ts";
import { storedBytes } from "./tree.ts";

/*
 * How a layer directory holds the data of its files. `content` is laid out as a device that EROFS images can have blocks in: whole
 * blocks of file after file, the last of each padded with zeros. `tails` holds the rest: what an image puts behind its inodes,
 * and all of the files that cannot lie in a device, which are those with holes and those whose attributes fill the room of a tail.
 */

/** Where a file's data is: the first `contentBytes` of it in `content`, what is left of it in `tails`. */
export interface StoredData {
  /** A multiple of the block size. */
  readonly contentOffset: number;
  readonly contentBytes: number;
  readonly tailsOffset: number;
}

/** Inode, header of attributes, and what each attribute takes at most beside its name and value. */
const inodeBytes = 64 + 12;
const perXattrBytes = 4;

/** How much of a file's data goes to `content`; what an index means depends on it. */
export function contentBytesOf({ sizeBytes, data, xattrs }: Pick<TarEntry, "sizeBytes" | "data" | "xattrs">): number {
  if (data !== undefined) return 0;
  const { tailBytes } = fileDataOf(sizeBytes);
  if (tailBytes > 0 && xattrs.size > 0) {
    let headBytes = inodeBytes;
    for (const [name, value] of xattrs) headBytes += name.length + value.length + perXattrBytes;
    if (headBytes > blockBytes - maxInlineTailBytes) return 0;
  }
  return sizeBytes - tailBytes;
}

/** Gives files their places, one after the other in the order of their layer. */
export class StoredDataCounter {
  /** Of the whole file `content`, with all padding. */
  contentBytes = 0;
  tailsBytes = 0;

  place(file: Pick<TarEntry, "sizeBytes" | "data" | "xattrs">): StoredData {
    const contentBytes = contentBytesOf(file);
    const stored = { contentOffset: this.contentBytes, contentBytes, tailsOffset: this.tailsBytes };
    this.contentBytes += contentBytes + paddingOf(contentBytes);
    this.tailsBytes += storedBytes(file) - contentBytes;
    return stored;
  }
}

/** Zeros behind that many bytes, up to a whole block. */
export function paddingOf(contentBytes: number): number {
  return (blockBytes - (contentBytes % blockBytes)) % blockBytes;
}
