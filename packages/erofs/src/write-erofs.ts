import { createHash } from "node:crypto";
import { ContentStream } from "./content-stream.ts";
import { directoryBlocks, writeDirectoryBlock } from "./directory.ts";
import {
  blockBytes,
  compactInodeBytes,
  dataLayout,
  encodeDevice,
  extendedInodeBytes,
  fileTypes,
  nullAddress,
  slotBytes,
  slotsPerBlock,
  superblock,
  wholeBlocks,
  writeInode,
} from "./format.ts";
import { pieces, storedRuns, writeChunkAddresses } from "./holes.ts";
import { ImageFile } from "./image-file.ts";
import { chunksOf, entriesOf, type Inode } from "./inode.ts";
import { checkDeviceDigest, type Group, type Plan, planImage } from "./plan.ts";
import type { ErofsDirectory, ErofsFile, ErofsNewDevice } from "./tree.ts";

export interface ErofsOptions {
  readonly root: ErofsDirectory;
  /** Every file of the tree once, in the order in which `content` supplies them. */
  readonly files: readonly ErofsFile[];
  /** What files have blocks in beside the image, in the order in which they are attached; at most 16. */
  readonly devices?: readonly ErofsNewDevice[];
  /** The files' data ranges, concatenated, in chunks of any size; of a file with a place in a device only an inlined tail. */
  readonly content: AsyncIterable<Uint8Array>;
  /** Is replaced; removed again when writing fails. */
  readonly imagePath: string;
  /** What the image is made from; the file system's UUID is derived from it. */
  readonly identity: string;
  readonly signal: AbortSignal;
}

export interface ErofsImage {
  readonly sizeBytes: number;
}

/**
 * Writes a tree as an uncompressed EROFS image (Linux, fs/erofs/erofs_fs.h) with blocks of 4 KiB, front to back and then its first block. The same
 * tree, order of files, content and identity give the same bytes. Memory grows with the number of nodes, not with their
 * content. Throws IMAGE_LAYER_INVALID or IMAGE_TOO_LARGE for what the format cannot hold, ROOTFS_DISK_FULL, and a
 * RangeError when tree, files and content contradict each other.
 */
export async function writeErofs(options: ErofsOptions): Promise<ErofsImage> {
  const { signal } = options;
  signal.throwIfAborted();
  const content = new ContentStream(options.content, signal);
  try {
    const plan = planImage(options.root, options.files, options.devices ?? []);
    await using image = await ImageFile.create(options.imagePath);
    await image.writeZeros(blockBytes, signal); // the superblock's
    await new ImageWriter(plan, image, content, signal).write();
    return await image.finish(await firstBlock(plan, options), signal);
  } finally {
    await content.close();
  }
}

class ImageWriter {
  readonly #plan: Plan;
  readonly #image: ImageFile;
  readonly #content: ContentStream;
  readonly #signal: AbortSignal;
  /** The metadata of the group at hand. */
  #metadata: Buffer = Buffer.alloc(0);
  /** Of the inode written last. */
  #ordinal = 0;

  constructor(plan: Plan, image: ImageFile, content: ContentStream, signal: AbortSignal) {
    this.#plan = plan;
    this.#image = image;
    this.#content = content;
    this.#signal = signal;
  }

  async write(): Promise<void> {
    const { blockCount, xattrs } = this.#plan;
    for (const group of this.#plan.treeGroups) await this.#writeTreeGroup(group);
    for (const piece of xattrs.area()) await this.#image.write(piece, this.#signal);
    await this.#fillBlock();
    for (const group of this.#plan.fileGroups) await this.#writeFileGroup(group);
    await this.#content.expectEnd();
    await this.#image.writeZeros(blockBytes, this.#signal);
    if (this.#image.sizeBytes !== blockCount * blockBytes) throw new RangeError("the image is not as long as planned");
  }

  async #writeTreeGroup(group: Group): Promise<void> {
    const metadata = this.#startMetadata(group);
    for (const inode of group.inodes) {
      const at = this.#writeInodeHead(inode, group, metadata);
      const { node } = inode;
      if (inode.layout !== dataLayout.inline) continue;
      if (node.kind === "symlink") metadata.write(node.target, at, "latin1");
      if (node.kind === "directory") this.#writeDirectoryBlocks(inode, metadata, at, "last");
    }
    await this.#image.write(metadata, this.#signal);
    for (const inode of group.inodes) {
      const { node } = inode;
      if (node.kind === "symlink" && inode.layout === dataLayout.plain) {
        await this.#image.write(Buffer.from(node.target, "latin1"), this.#signal);
      }
      if (node.kind === "directory") {
        const blocks = wholeBlocks(inode.sizeBytes) - (inode.layout === dataLayout.inline ? 1 : 0);
        if (blocks === 0) continue;
        const data = Buffer.alloc(blocks * blockBytes);
        this.#writeDirectoryBlocks(inode, data, 0, inode.layout === dataLayout.inline ? "all but last" : "all");
        await this.#image.write(data, this.#signal);
      }
      if (!this.#image.endsBlock) await this.#fillBlock();
    }
  }

  async #writeFileGroup(group: Group): Promise<void> {
    const metadata = this.#startMetadata(group);
    for (const inode of group.inodes) {
      const file = inode.node;
      if (file.kind !== "file") continue;
      const at = this.#writeInodeHead(inode, group, metadata);
      const tailBytes = inode.layout === dataLayout.inline ? file.sizeBytes % blockBytes : 0;
      if (file.data === undefined) {
        // No promise for each of many small files whose tails are at hand.
        const blockBytesOfIt = file.place === undefined ? file.sizeBytes - tailBytes : 0;
        if (blockBytesOfIt > 0) await this.#content.toImage(this.#image, blockBytesOfIt);
        if (!this.#content.takeHeld(metadata, at, tailBytes)) await this.#content.toBuffer(metadata, at, tailBytes);
      } else {
        await this.#writeRanges(inode, file, metadata, at);
      }
      if (!this.#image.endsBlock) await this.#fillBlock();
    }
    await this.#image.write(metadata, this.#signal);
  }

  /** A file that is not all data: zeros between its ranges, or no blocks at all. */
  async #writeRanges(inode: Inode, file: ErofsFile, metadata: Buffer, at: number): Promise<void> {
    const { layout, startBlock } = inode;
    const { sizeBytes } = file;
    const chunks = chunksOf(inode);
    if (chunks !== undefined) writeChunkAddresses(metadata, at, file, chunks, startBlock);
    const intervals = chunks === undefined ? [{ from: 0, to: sizeBytes }] : storedRuns(file, chunks.bits);
    const tailBytes = layout === dataLayout.inline ? sizeBytes % blockBytes : 0;
    // Counts down through the bytes that go to blocks, then on through the tail.
    let blockBytesLeft = chunks === undefined ? sizeBytes - tailBytes : chunks.storedBlocks * blockBytes;
    let tailAt = at;
    for (const { data, length } of pieces(file.data ?? [], intervals)) {
      const toBlocks = Math.min(length, blockBytesLeft);
      const toTail = length - toBlocks;
      blockBytesLeft -= toBlocks;
      if (data) {
        await this.#content.toImage(this.#image, toBlocks);
        await this.#content.toBuffer(metadata, tailAt, toTail);
      } else {
        await this.#image.writeZeros(toBlocks, this.#signal);
      }
      tailAt += toTail;
    }
  }

  #startMetadata(group: Group): Buffer {
    const bytes = group.metadataBlocks * blockBytes;
    if (this.#metadata.length < bytes) this.#metadata = Buffer.allocUnsafeSlow(bytes);
    return this.#metadata.subarray(0, bytes).fill(0);
  }

  /** Writes an inode and its attributes; returns where in the metadata its tail or its chunk addresses go. */
  #writeInodeHead(inode: Inode, group: Group, into: Buffer): number {
    const { node, layout, extended, linkCount, sizeBytes } = inode;
    const { mode, uid, gid, mtimeNs, xattrs } = node.metadata;
    const at = (inode.nid - group.metadataBlock * slotsPerBlock) * slotBytes;
    const xattrBytes = this.#plan.xattrs.inodeBytes(xattrs);
    const place = placeOf(inode);
    const modeWithType = fileTypes[node.kind].modeBits | mode;
    writeInode(into, at, {
      extended,
      layout,
      xattrBytes,
      mode: modeWithType,
      linkCount,
      sizeBytes,
      place,
      ordinal: ++this.#ordinal,
      uid,
      gid,
      mtimeNs,
    });
    const xattrsAt = at + (extended ? extendedInodeBytes : compactInodeBytes);
    this.#plan.xattrs.writeInode(into, xattrsAt, xattrs);
    return xattrsAt + xattrBytes;
  }

  #writeDirectoryBlocks(inode: Inode, into: Buffer, at: number, which: "all" | "all but last" | "last"): void {
    const entries = entriesOf(inode);
    const { starts } = directoryBlocks(entries.names);
    const first = which === "last" ? starts.length - 1 : 0;
    const end = which === "all but last" ? starts.length - 1 : starts.length;
    for (let block = first; block < end; block++) {
      const range = { from: starts[block] ?? 0, to: starts[block + 1] ?? entries.names.length };
      writeDirectoryBlock(into, at + (block - first) * blockBytes, entries, range);
    }
  }

  async #fillBlock(): Promise<void> {
    const over = this.#image.sizeBytes % blockBytes;
    if (over > 0) await this.#image.writeZeros(blockBytes - over, this.#signal);
  }
}

/** The superblock, once it is known what the devices are. */
async function firstBlock(plan: Plan, { identity, devices = [] }: ErofsOptions): Promise<Buffer> {
  const digests = await Promise.all(devices.map(({ digest }) => Promise.resolve(digest)));
  digests.forEach(checkDeviceDigest);
  return superblock({
    ...plan,
    inodeCount: plan.inodes.size,
    compactMtimeNs: plan.commonMtimeNs,
    uuid: uuidOf(identity),
    devices: plan.devices.map((device, index) => ({ ...device, digest: digests[index] ?? "" })),
  });
}

function placeOf(inode: Inode): number {
  const { node, startBlock, sizeBytes } = inode;
  if (node.kind === "char" || node.kind === "block") return encodeDevice(node.deviceMajor, node.deviceMinor);
  const chunks = chunksOf(inode);
  if (chunks !== undefined) return chunks.bits;
  return sizeBytes >= blockBytes || (sizeBytes > 0 && inode.layout === dataLayout.plain) ? startBlock : nullAddress;
}

/** A version 8 UUID (RFC 9562: the form for derived values) of a text. */
function uuidOf(text: string): Buffer {
  const bytes = createHash("sha256").update(text).digest().subarray(0, 16);
  bytes.writeUInt8((bytes.readUInt8(6) & 0x0f) | 0x80, 6);
  bytes.writeUInt8((bytes.readUInt8(8) & 0x3f) | 0x80, 8);
  return bytes;
}
