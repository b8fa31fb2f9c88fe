import { createHash } from "node:crypto";
import { ServiceError } from "@unkey/base";
import { blockBytes, maxNameBytes, wholeBlocks, xattrHeaderBytes } from "./format.ts";

/*
 * Extended attributes (Linux, fs/erofs/erofs_fs.h: erofs_xattr_ibody_header, erofs_xattr_entry). An inode's attributes
 * follow it; those that several inodes have alike are stored once, in an area that inodes point into.
 */

type Xattrs = ReadonlyMap<string, Buffer>;

/** Longest prefix first: what follows it is stored as the name. */
const prefixes: readonly (readonly [string, number])[] = [
  ["system.posix_acl_access", 2],
  ["system.posix_acl_default", 3],
  ["security.", 6],
  ["trusted.", 4],
  ["user.", 1],
];
const entryHeaderBytes = 4;
const idBytes = 4;
const maxValueBytes = 0xffff;
/** An inode counts its attributes' bytes in 16 bits of four bytes each. */
const maxInodeXattrBytes = xattrHeaderBytes + (0xffff - 1) * 4;
/** What the kernel can list of one inode: all names with a NUL each (XATTR_LIST_MAX). */
const maxNameListBytes = 65_536;
/** Numbers above are reserved by the format. */
const maxSharedPerInode = 128;
/** Longer values are told apart by their hash. */
const maxKeyValueBytes = 64;

interface SharedEntry {
  count: number;
  /** In the shared area. */
  offset: number;
  readonly nameIndex: number;
  readonly name: string;
  readonly value: Buffer;
}

function splitName(name: string): { nameIndex: number; name: string } | undefined {
  for (const [prefix, nameIndex] of prefixes) {
    if (!name.startsWith(prefix)) continue;
    const rest = name.slice(prefix.length);
    const whole = !prefix.endsWith(".");
    if (whole ? rest !== "" : rest === "" || rest.length > maxNameBytes || rest.includes("\0")) return undefined;
    return { nameIndex, name: rest };
  }
  return undefined;
}

/** Every attribute of an image. First `count` the attributes of each inode, then `seal`, then lay out and write. */
export class XattrTable {
  /** While counting all, once sealed those that are shared, in the order of the area. */
  readonly #entries = new Map<string, SharedEntry>();
  #areaBytes = 0;

  /** Throws IMAGE_LAYER_INVALID or IMAGE_TOO_LARGE for what the format cannot hold. */
  count(xattrs: Xattrs, nodeName: string): void {
    let listBytes = 0;
    let bytes = xattrHeaderBytes;
    for (const [fullName, value] of xattrs) {
      const split = splitName(fullName);
      if (split === undefined) {
        throw new ServiceError("IMAGE_LAYER_INVALID", `${nodeName} has an attribute that EROFS cannot hold`);
      }
      listBytes += fullName.length + 1;
      bytes += entryBytes(split.name, value);
      if (value.length > maxValueBytes || listBytes > maxNameListBytes || bytes > maxInodeXattrBytes) {
        throw new ServiceError("IMAGE_TOO_LARGE", `${nodeName} has more attributes than an inode can hold`);
      }
      const key = keyOf(fullName, value);
      const entry = this.#entries.get(key);
      if (entry === undefined) this.#entries.set(key, { count: 1, offset: 0, ...split, value });
      else entry.count++;
    }
  }

  /** Decides what is shared: whatever takes less room so. */
  seal(): void {
    const shared = [...this.#entries].filter(([, { count, name, value }]) => {
      const bytes = entryBytes(name, value);
      return count * bytes > bytes + count * idBytes;
    });
    shared.sort(([a], [b]) => (a < b ? -1 : 1));
    this.#entries.clear();
    for (const [key, entry] of shared) {
      entry.offset = this.#areaBytes;
      this.#areaBytes += entryBytes(entry.name, entry.value);
      this.#entries.set(key, entry);
    }
  }

  get areaBlocks(): number {
    return wholeBlocks(this.#areaBytes);
  }

  /** The shared area, in pieces of about a block. */
  *area(): Generator<Buffer> {
    let piece = Buffer.alloc(2 * (blockBytes + maxValueBytes));
    let used = 0;
    for (const entry of this.#entries.values()) {
      if (used > blockBytes + maxValueBytes) {
        yield piece.subarray(0, used);
        piece = Buffer.alloc(piece.length);
        used = 0;
      }
      used += writeEntry(piece, used, entry);
    }
    yield piece.subarray(0, used);
  }

  /** Bytes that the attributes take behind their inode. */
  inodeBytes(xattrs: Xattrs): number {
    if (xattrs.size === 0) return 0;
    const { inline, sharedOffsets } = this.#divide(xattrs);
    return inline.reduce(
      (bytes, { name, value }) => bytes + entryBytes(name, value),
      xattrHeaderBytes + idBytes * sharedOffsets.length,
    );
  }

  writeInode(into: Buffer, at: number, xattrs: Xattrs): void {
    if (xattrs.size === 0) return;
    const { inline, sharedOffsets } = this.#divide(xattrs);
    into.writeUInt8(sharedOffsets.length, at + 4);
    let offset = at + xattrHeaderBytes;
    for (const shared of sharedOffsets) {
      into.writeUInt32LE(shared / 4, offset);
      offset += idBytes;
    }
    for (const entry of inline) offset += writeEntry(into, offset, entry);
  }

  #divide(xattrs: Xattrs): {
    inline: { nameIndex: number; name: string; value: Buffer }[];
    sharedOffsets: number[];
  } {
    const inline: { nameIndex: number; name: string; value: Buffer }[] = [];
    const sharedOffsets: number[] = [];
    for (const fullName of [...xattrs.keys()].sort()) {
      const value = xattrs.get(fullName);
      const split = splitName(fullName);
      if (value === undefined || split === undefined) continue;
      const shared = this.#entries.get(keyOf(fullName, value));
      if (shared !== undefined && sharedOffsets.length < maxSharedPerInode) sharedOffsets.push(shared.offset);
      else inline.push({ ...split, value });
    }
    return { inline, sharedOffsets };
  }
}

function keyOf(fullName: string, value: Buffer): string {
  const told = value.length <= maxKeyValueBytes ? value : createHash("sha256").update(value).digest();
  return `${fullName}\0${value.length}\0${told.toString("latin1")}`;
}

function entryBytes(name: string, value: Buffer): number {
  return Math.ceil((entryHeaderBytes + name.length + value.length) / 4) * 4;
}

function writeEntry(into: Buffer, at: number, entry: { nameIndex: number; name: string; value: Buffer }): number {
  into.writeUInt8(entry.name.length, at);
  into.writeUInt8(entry.nameIndex, at + 1);
  into.writeUInt16LE(entry.value.length, at + 2);
  into.write(entry.name, at + entryHeaderBytes, "latin1");
  entry.value.copy(into, at + entryHeaderBytes + entry.name.length);
  return entryBytes(entry.name, entry.value);
}
