import { ServiceError } from "@unkey/base";
import { directoryBytes } from "./directory.ts";
import {
  blockBytes,
  compactInodeBytes,
  dataLayout,
  extendedInodeBytes,
  fileDataOf,
  type MappedDevice,
  maxBlocks,
  maxDevices,
  maxRootNid,
  slotBytes,
  slotsPerBlock,
  wholeBlocks,
} from "./format.ts";
import { chunkLayout, chunkListBytes } from "./holes.ts";
import { chunksOf, entriesOf, type Inode } from "./inode.ts";
import { SlotAllocator } from "./slot-allocator.ts";
import { survey } from "./survey.ts";
import type { ErofsDirectory, ErofsFile, ErofsNewDevice, ErofsNode } from "./tree.ts";
import type { XattrTable } from "./xattr-table.ts";

/*
 * Where everything goes, decided before the first byte is written, so that the image can be written from its first byte to
 * its last: the superblock; groups of directories and whatever else has no content, each as metadata and then data; the
 * shared attributes; groups of files, each as data and then metadata. A file's tail arrives with its data and waits in
 * the group's metadata, which is why that comes behind it and is bounded.
 */

/** Inodes whose metadata is written in one piece. */
export interface Group {
  readonly inodes: readonly Inode[];
  readonly metadataBlock: number;
  readonly metadataBlocks: number;
}

export interface Plan {
  readonly inodes: ReadonlyMap<ErofsNode, Inode>;
  readonly treeGroups: readonly Group[];
  readonly fileGroups: readonly Group[];
  readonly xattrs: XattrTable;
  readonly sharedXattrBlock: number;
  /** The mtime of compact inodes. */
  readonly commonMtimeNs: bigint;
  readonly blockCount: number;
  readonly hasChunks: boolean;
  readonly rootNid: number;
  readonly devices: readonly MappedDevice[];
}

/** A group's metadata is held in memory: at most these blocks, or one inode with all that belongs to it. */
const maxGroupBlocks = 256;

/** Throws IMAGE_TOO_LARGE or IMAGE_LAYER_INVALID for what EROFS cannot hold, RangeErrors for a contradictory tree. */
export function planImage(root: ErofsDirectory, files: readonly ErofsFile[], devices: readonly ErofsNewDevice[]): Plan {
  checkDevices(devices);
  const { inodes, treeInodes, fileInodes, commonMtimeNs, xattrs } = survey(root, files);
  const space = new BlockSpace();
  const measure = (inode: Inode): Extent => measureInode(inode, commonMtimeNs, xattrs);
  const treeGroups = layOut(treeInodes, "metadata first", { space, measure });
  const sharedXattrBlock = space.take(xattrs.areaBlocks);
  const fileGroups = layOut(fileInodes, "data first", { space, measure });
  const rootNid = inodes.get(root)?.nid ?? Number.NaN;
  if (!(rootNid <= maxRootNid)) throw new RangeError("the root directory is not where the superblock can name it");
  const hasChunks = fileInodes.some(({ layout }) => layout === dataLayout.chunks);
  // fsck.erofs 1.5 reads a few bytes behind every inode, attributes or none: the last inode is not the end of the image.
  const blockCount = space.take(1) + 1;
  const mapped = devices.map(({ blockCount: blocks }) => ({ blockCount: blocks, mappedBlock: space.take(blocks) }));
  for (const inode of fileInodes) placeInDevice(inode, mapped);
  return {
    inodes,
    treeGroups,
    fileGroups,
    xattrs,
    sharedXattrBlock,
    commonMtimeNs,
    blockCount,
    hasChunks,
    rootNid,
    devices: mapped,
  };
}

export function checkDeviceDigest(digest: string): void {
  if (!/^[0-9a-f]{64}$/.test(digest)) throw new RangeError("a device's digest is no sha256 in hexadecimal digits");
}

function checkDevices(devices: readonly ErofsNewDevice[]): void {
  if (devices.length > maxDevices) throw new RangeError(`an image has ${maxDevices} devices at most`);
  for (const { digest, blockCount } of devices) {
    if (typeof digest === "string") checkDeviceDigest(digest);
    if (!Number.isSafeInteger(blockCount) || blockCount < 1) throw new RangeError("a device has no blocks");
  }
}

/** Gives a file that has its blocks in a device their number there. */
function placeInDevice(inode: Inode, devices: readonly MappedDevice[]): void {
  const { node } = inode;
  if (node.kind !== "file" || node.place === undefined) return;
  const device = devices[node.place.device];
  const { blocks, tailBytes } = fileDataOf(node.sizeBytes);
  const { block } = node.place;
  if (device === undefined || !Number.isSafeInteger(block) || block < 0 || block + blocks > device.blockCount) {
    throw new RangeError("a file's place is not in a device");
  }
  if (node.data !== undefined) throw new RangeError("a file with holes has a place in a device");
  if (tailBytes > 0 && inode.layout !== dataLayout.inline) {
    throw new RangeError("a file with a place in a device has attributes that leave no room for its tail");
  }
  inode.startBlock = device.mappedBlock + block;
}

class BlockSpace {
  /** Block 0 is the superblock's. */
  #next = 1;

  /** Takes the next blocks of the image and returns the first. */
  take(blocks: number): number {
    const first = this.#next;
    this.#next += blocks;
    if (this.#next > maxBlocks) {
      throw new ServiceError("IMAGE_TOO_LARGE", "the root filesystem is over the 16 TiB that EROFS can hold");
    }
    return first;
  }
}

/** What an inode takes of the image. */
interface Extent {
  /** With its attributes and what else follows it. */
  readonly metadataBytes: number;
  readonly dataBlocks: number;
}

function layOut(
  inodes: readonly Inode[],
  order: "metadata first" | "data first",
  { space, measure }: { readonly space: BlockSpace; readonly measure: (inode: Inode) => Extent },
): Group[] {
  const groups: Group[] = [];
  let slots = new SlotAllocator();
  let members: Inode[] = [];
  let groupDataBlocks = 0;
  const close = (): void => {
    if (members.length === 0) return;
    const first = space.take(slots.blocks + groupDataBlocks);
    const metadataBlock = order === "metadata first" ? first : first + groupDataBlocks;
    const dataBlock = order === "metadata first" ? first + slots.blocks : first;
    for (const inode of members) {
      inode.nid += metadataBlock * slotsPerBlock;
      inode.startBlock += dataBlock;
    }
    groups.push({ inodes: members, metadataBlock, metadataBlocks: slots.blocks });
    slots = new SlotAllocator();
    members = [];
    groupDataBlocks = 0;
  };
  for (const inode of inodes) {
    const { metadataBytes, dataBlocks } = measure(inode);
    const needed = Math.ceil(metadataBytes / slotBytes);
    if (slots.blocks + Math.ceil(needed / slotsPerBlock) > maxGroupBlocks && !slots.fitsInGap(needed)) close();
    inode.nid = slots.place(needed);
    inode.startBlock = groupDataBlocks;
    groupDataBlocks += dataBlocks;
    members.push(inode);
  }
  close();
  return groups;
}

/** Decides an inode's form. */
function measureInode(inode: Inode, commonMtimeNs: bigint, xattrs: XattrTable): Extent {
  const { node } = inode;
  const { metadata } = node;
  if (node.kind === "file") {
    inode.sizeBytes = node.sizeBytes;
    inode.detail = chunkLayout(node);
  } else if (node.kind === "symlink") {
    inode.sizeBytes = node.target.length;
  } else if (node.kind === "directory") {
    inode.sizeBytes = directoryBytes(entriesOf(inode).names);
  }
  const { sizeBytes } = inode;
  inode.extended =
    metadata.uid > 0xffff ||
    metadata.gid > 0xffff ||
    inode.linkCount > 0xffff ||
    sizeBytes > 0xffff_ffff ||
    metadata.mtimeNs !== commonMtimeNs;
  const headBytes = (inode.extended ? extendedInodeBytes : compactInodeBytes) + xattrs.inodeBytes(metadata.xattrs);
  const chunks = chunksOf(inode);
  if (chunks !== undefined) {
    inode.layout = dataLayout.chunks;
    return { metadataBytes: headBytes + chunkListBytes(chunks), dataBlocks: chunks.storedBlocks };
  }
  const isPlaced = node.kind === "file" && node.place !== undefined;
  const tailBytes = node.kind === "file" ? fileDataOf(sizeBytes).tailBytes : sizeBytes % blockBytes;
  if (tailBytes > 0 && headBytes + tailBytes <= blockBytes) {
    inode.layout = dataLayout.inline;
    const dataBlocks = isPlaced ? 0 : (sizeBytes - tailBytes) / blockBytes;
    return { metadataBytes: headBytes + tailBytes, dataBlocks };
  }
  inode.layout = dataLayout.plain;
  return { metadataBytes: headBytes, dataBlocks: isPlaced ? 0 : wholeBlocks(sizeBytes) };
}
