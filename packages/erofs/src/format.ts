/*
 * The on-disk format of EROFS, as far as this package writes it: Linux, fs/erofs/erofs_fs.h and
 * Documentation/filesystems/erofs.rst. Everything is little-endian.
 */

export const blockBytes = 4096;
/** Inodes start at multiples of this; an inode's number (nid) is its offset in the image divided by it. */
export const slotBytes = 32;
export const slotsPerBlock = blockBytes / slotBytes;
export const compactInodeBytes = 32;
export const extendedInodeBytes = 64;
export const maxNameBytes = 255;
/** The kernel reads a link's target into one page with a NUL after it. */
export const maxTargetBytes = blockBytes - 1;
/** Block numbers are 32 bits wide and the last one means a hole. */
export const maxBlocks = 0xffff_ffff;
/** The superblock has 16 bits for the root's number. */
export const maxRootNid = 0xffff;

/** Where an inode's data is. */
export const dataLayout = {
  /** In consecutive blocks. */
  plain: 0,
  /** As plain, but the bytes after the last whole block follow the inode. */
  inline: 2,
  /** In chunks, each with its own address or none: a hole. */
  chunks: 4,
} as const;

export const nullAddress = 0xffff_ffff;

/** A file's last bytes are put behind its inode when they are no more than these; more of them take a block. */
export const maxInlineTailBytes = blockBytes / 2;

/** What a file's data takes of its blocks, the last of them perhaps padded, and of the room behind its inode. */
export function fileDataOf(sizeBytes: number): { readonly blocks: number; readonly tailBytes: number } {
  const over = sizeBytes % blockBytes;
  return over <= maxInlineTailBytes
    ? { blocks: (sizeBytes - over) / blockBytes, tailBytes: over }
    : { blocks: wholeBlocks(sizeBytes), tailBytes: 0 };
}

/** By kind: the file type bits of a mode and the type in a directory entry. */
export const fileTypes = {
  file: { modeBits: 0o100000, entryType: 1 },
  directory: { modeBits: 0o040000, entryType: 2 },
  char: { modeBits: 0o020000, entryType: 3 },
  block: { modeBits: 0o060000, entryType: 4 },
  fifo: { modeBits: 0o010000, entryType: 5 },
  symlink: { modeBits: 0o120000, entryType: 7 },
} as const;

export const superblockOffset = 1024;
export const superblockBytes = 128;
export const magic = 0xe0f5_e1e2;
export const compatChecksum = 0x1;
/** Times of inodes are modification times. */
const compatMtime = 0x2;
const incompatChunkedFiles = 0x4;
export const incompatDeviceTable = 0x8;
/** One device in the table, which starts at a multiple of it. */
export const deviceSlotBytes = 128;
/** What fits behind the superblock is 23; nothing attaches as many to a virtual machine. */
export const maxDevices = 16;

export interface Superblock {
  readonly rootNid: number;
  readonly inodeCount: number;
  /** The mtime of every compact inode. */
  readonly compactMtimeNs: bigint;
  readonly blockCount: number;
  readonly sharedXattrBlock: number;
  readonly uuid: Buffer;
  readonly hasChunks: boolean;
  readonly devices: readonly (MappedDevice & {
    /** SHA-256 of its bytes, in hexadecimal digits. */
    readonly digest: string;
  })[];
}

/** A further device that holds blocks of files. */
export interface MappedDevice {
  readonly blockCount: number;
  /** Where its first block stands among the image's block numbers: behind the image's own blocks and other devices'. */
  readonly mappedBlock: number;
}

/** The image's first block. */
export function superblock(facts: Superblock): Buffer {
  const block = Buffer.alloc(blockBytes);
  const at = superblockOffset;
  block.writeUInt32LE(magic, at);
  block.writeUInt32LE(compatChecksum | compatMtime, at + 8);
  block.writeUInt8(Math.log2(blockBytes), at + 12);
  block.writeUInt16LE(facts.rootNid, at + 14);
  block.writeBigUInt64LE(BigInt(facts.inodeCount), at + 16);
  writeTime(block, at + 24, facts.compactMtimeNs);
  block.writeUInt32LE(facts.blockCount, at + 36);
  // Where inode numbers count from (at + 40) stays 0: the start of the image.
  block.writeUInt32LE(facts.sharedXattrBlock, at + 44);
  facts.uuid.copy(block, at + 48);
  const incompat = (facts.hasChunks ? incompatChunkedFiles : 0) | (facts.devices.length > 0 ? incompatDeviceTable : 0);
  block.writeUInt32LE(incompat, at + 80);
  if (facts.devices.length > 0) {
    const tableAt = at + superblockBytes;
    block.writeUInt16LE(facts.devices.length, at + 86);
    block.writeUInt16LE(tableAt / deviceSlotBytes, at + 88);
    for (const [index, { digest, blockCount, mappedBlock }] of facts.devices.entries()) {
      const slot = tableAt + index * deviceSlotBytes;
      block.write(digest, slot, "latin1");
      block.writeUInt32LE(blockCount, slot + 64);
      block.writeUInt32LE(mappedBlock, slot + 68);
    }
  }
  block.writeUInt32LE(superblockChecksum(block), at + 4);
  return block;
}

export interface InodeFields {
  readonly extended: boolean;
  readonly layout: number;
  /** Bytes of attributes that follow the inode. */
  readonly xattrBytes: number;
  readonly mode: number;
  readonly linkCount: number;
  readonly sizeBytes: number;
  /** Start block, device number or chunk format. */
  readonly place: number;
  /** Consecutive number, for programs with 32-bit inode numbers. */
  readonly ordinal: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
}

export function writeInode(into: Buffer, at: number, inode: InodeFields): void {
  into.writeUInt16LE((inode.extended ? 1 : 0) | (inode.layout << 1), at);
  into.writeUInt16LE(inode.xattrBytes === 0 ? 0 : (inode.xattrBytes - xattrHeaderBytes) / 4 + 1, at + 2);
  into.writeUInt16LE(inode.mode, at + 4);
  if (inode.extended) {
    into.writeUInt32LE(inode.sizeBytes % 2 ** 32, at + 8);
    into.writeUInt32LE(Math.floor(inode.sizeBytes / 2 ** 32), at + 12);
    into.writeUInt32LE(inode.place, at + 16);
    into.writeUInt32LE(inode.ordinal, at + 20);
    into.writeUInt32LE(inode.uid, at + 24);
    into.writeUInt32LE(inode.gid, at + 28);
    writeTime(into, at + 32, inode.mtimeNs);
    into.writeUInt32LE(inode.linkCount, at + 44);
  } else {
    into.writeUInt16LE(inode.linkCount, at + 6);
    into.writeUInt32LE(inode.sizeBytes, at + 8);
    into.writeUInt32LE(inode.place, at + 16);
    into.writeUInt32LE(inode.ordinal, at + 20);
    into.writeUInt16LE(inode.uid, at + 24);
    into.writeUInt16LE(inode.gid, at + 26);
  }
}

/** Bytes before an inode's attributes: a filter that we leave unused, then the count of shared ones. */
export const xattrHeaderBytes = 12;

export const direntBytes = 12;

/** A device number as the kernel stores it (new_encode_dev): 12 bits of major, 20 of minor. */
export function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & 0xfff00) << 12)) >>> 0;
}

export function wholeBlocks(bytes: number): number {
  return Math.ceil(bytes / blockBytes);
}

const nsPerSecond = 1_000_000_000n;

/** Signed 64-bit seconds and 32-bit nanoseconds, which are never negative. */
function writeTime(into: Buffer, at: number, timeNs: bigint): void {
  const ns = ((timeNs % nsPerSecond) + nsPerSecond) % nsPerSecond;
  into.writeBigInt64LE((timeNs - ns) / nsPerSecond, at);
  into.writeUInt32LE(Number(ns), at + 8);
}

const castagnoli = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f6_3b78 : crc >>> 1;
  return crc;
});

/** Of the image's first block, from the superblock on and with a checksum of zero: what belongs in its place. */
export function superblockChecksum(block: Buffer): number {
  return crc32c(block.subarray(superblockOffset));
}

/** CRC-32C without its last inversion, as the kernel's crc32c() gives it. */
function crc32c(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (castagnoli[(crc ^ byte) & 0xff] ?? 0);
  return crc >>> 0;
}
