import { readFileSync, writeFileSync } from "node:fs";

const blockBytes = 4096;
const superblockAt = 1024;
const slotBytes = 128;

/**
 * Splits an image of mkfs.erofs whose metadata fits its first block: that block and a device table stay, all that follows
 * goes into `partCount` parts, beside the image as `<image>.1` and so on (Linux: fs/erofs/erofs_fs.h). Yields their paths.
 */
export function splitErofs(imagePath: string, partCount: number): string[] {
  const image = readFileSync(imagePath);
  const blockCount = image.length / blockBytes;
  const base = Buffer.alloc(2 * blockBytes);
  image.copy(base, 0, 0, blockBytes);
  // The checksum covers the superblock: without its flag nobody looks at it.
  base.writeUInt32LE(base.readUInt32LE(superblockAt + 8) & ~1, superblockAt + 8);
  base.writeUInt32LE((base.readUInt32LE(superblockAt + 80) | 8) >>> 0, superblockAt + 80);
  base.writeUInt16LE(partCount, superblockAt + 86);
  base.writeUInt16LE(blockBytes / slotBytes, superblockAt + 88);
  const paths: string[] = [];
  for (let index = 0, start = 1; index < partCount; index++) {
    const end = index === partCount - 1 ? blockCount : start + index + 1; // no two of the same size
    if (end <= start || end > blockCount) throw new Error(`${blockCount} blocks are too few for ${partCount} parts`);
    const path = `${imagePath}.${index + 1}`;
    writeFileSync(path, image.subarray(start * blockBytes, end * blockBytes));
    base.writeUInt32LE(end - start, blockBytes + index * slotBytes + 64);
    base.writeUInt32LE(start, blockBytes + index * slotBytes + 68);
    paths.push(path);
    start = end;
  }
  writeFileSync(imagePath, base);
  return paths;
}
