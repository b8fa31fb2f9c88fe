import { open } from "node:fs/promises";
import {
  blockBytes,
  compatChecksum,
  deviceSlotBytes,
  incompatDeviceTable,
  magic,
  maxDevices,
  superblockBytes,
  superblockChecksum,
  superblockOffset,
} from "./format.ts";
import type { ErofsDevice } from "./tree.ts";

/** The device table of the image at `path`. Throws an Error saying why a file is no EROFS image as `writeErofs` makes them. */
export async function readDeviceTable(path: string): Promise<readonly ErofsDevice[]> {
  const block = Buffer.alloc(blockBytes);
  await using file = await open(path);
  for (let held = 0; held < blockBytes; ) {
    const { bytesRead } = await file.read(block, held, blockBytes - held, held);
    if (bytesRead === 0) return deviceTableOf(block.subarray(0, held));
    held += bytesRead;
  }
  return deviceTableOf(block);
}

/**
 * The devices that an image's files have blocks in, in the order in which they are attached; none for an image that is
 * whole. `head` is the image's start, a block of it or more, and is not trusted. Throws an Error as `readDeviceTable` does.
 */
export function deviceTableOf(head: Uint8Array): readonly ErofsDevice[] {
  if (head.length < blockBytes) throw new Error("no EROFS image: it is shorter than a superblock's block");
  const block = Buffer.from(head.subarray(0, blockBytes)); // a copy: the checksum is counted without itself
  const at = superblockOffset;
  if (block.readUInt32LE(at) !== magic) throw new Error("no EROFS image: it has another magic number");
  const checksum = block.readUInt32LE(at + 4);
  block.writeUInt32LE(0, at + 4);
  if ((block.readUInt32LE(at + 8) & compatChecksum) === 0 || superblockChecksum(block) !== checksum) {
    throw new Error("the EROFS image's superblock has a wrong checksum");
  }
  if (block.readUInt8(at + 12) !== Math.log2(blockBytes))
    throw new Error(`the EROFS image's blocks are not of ${blockBytes} bytes`);
  if ((block.readUInt32LE(at + 80) & incompatDeviceTable) === 0) return [];
  return devicesOf(
    block,
    block.readUInt16LE(at + 86),
    block.readUInt16LE(at + 88) * deviceSlotBytes,
    block.readUInt32LE(at + 36),
  );
}

function devicesOf(block: Buffer, count: number, tableAt: number, imageBlocks: number): ErofsDevice[] {
  if (count > maxDevices) throw new Error(`the EROFS image names ${count} devices; ${maxDevices} are read`);
  if (tableAt < superblockOffset + superblockBytes || tableAt + count * deviceSlotBytes > blockBytes) {
    throw new Error("the EROFS image's device table is not in its first block");
  }
  let mappedBlock = imageBlocks;
  return Array.from({ length: count }, (_, index) => {
    const slot = tableAt + index * deviceSlotBytes;
    const digest = block.toString("latin1", slot, slot + 64);
    if (!/^[0-9a-f]{64}$/.test(digest)) throw new Error("a device of the EROFS image has no sha256 for a tag");
    const blockCount = block.readUInt32LE(slot + 64);
    if (blockCount === 0 || block.readUInt32LE(slot + 68) !== mappedBlock) {
      throw new Error("a device of the EROFS image is not mapped behind what precedes it");
    }
    mappedBlock += blockCount;
    return { digest, blockCount };
  });
}
