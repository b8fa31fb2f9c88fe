import { ServiceError } from "@unkey/base";
import { directoryBlocks, sortedNames } from "./directory.ts";
import {
  blockBytes,
  compactInodeBytes,
  dataLayout,
  extendedInodeBytes,
  maxBlocks,
  maxRootNid,
  slotBytes,
  slotsPerBlock,
  wholeBlocks,
} from "./format.ts";
import { type ChunkLayout, chunkLayout, chunkListBytes } from "./holes.ts";
import { SlotAllocator } from "./slot-allocator.ts";
import { type Survey, survey } from "./survey.ts";
import type { ErofsDirectory, ErofsFile, ErofsNode } from "./tree.ts";
import type { XattrTable } from "./xattr-table.ts";

/*
 * Where everything goes, decided before the first byte is written, so that the image can be written from its first byte to
 * its last: the superblock; groups of directories and whatever else has no content, each as metadata and then data; the
 * shared attributes; groups of files, each as data and then metadata. A file's tail arrives with its data and waits in
 * the group's metadata, which is why that comes behind it and is bounded.
 */

/** An inode and its place. */
export interface PlannedInode {
  readonly node: ErofsNode;
  readonly ordinal: number;
  readonly linkCount: number;
  readonly sizeBytes: number;
  readonly extended: boolean;
  readonly layout: number;
  /** Its own number; until its group is closed, its slot in the group's metadata. */
  nid: number;
  /** Where its data blocks start; until its group is closed, counted in the group's data. */
  startBlock: number;
  readonly detail: ChunkLayout | DirectoryDetail | undefined;
}

export interface DirectoryDetail {
  readonly names: readonly string[];
  readonly parent: ErofsDirectory;
}

/** Inodes whose metadata is written in one piece. */
export interface Group<Inode extends PlannedInode = PlannedInode> {
  readonly inodes: readonly Inode[];
  readonly metadataBlock: number;
  readonly metadataBlocks: number;
}

export interface Plan {
  readonly inodes: ReadonlyMap<ErofsNode, PlannedInode>;
  readonly treeGroups: readonly Group[];
  readonly fileGroups: readonly Group[];
  readonly xattrs: XattrTable;
  readonly sharedXattrBlock: number;
  readonly compactMtimeNs: bigint;
  readonly blockCount: number;
  readonly hasChunks: boolean;
  readonly rootNid: number;
}

/** A group's metadata is held in memory: at most these blocks, or one inode with all that belongs to it. */
const maxGroupBlocks = 256;

/** Throws IMAGE_TOO_LARGE or IMAGE_LAYER_INVALID for what EROFS cannot hold, RangeErrors for a contradictory tree. */
export function planImage(root: ErofsDirectory, files: readonly ErofsFile[]): Plan {
  const facts = survey(root, files);
  const planner = new Planner(facts);
  const treeGroups = planner.layOut(facts.treeNodes, "metadata first");
  const sharedXattrBlock = planner.reserve(facts.xattrs.areaBlocks);
  const fileGroups = planner.layOut(files, "data first");
  const rootNid = planner.inodes.get(root)?.nid ?? Number.NaN;
  if (!(rootNid <= maxRootNid)) throw new RangeError("the root directory is not where the superblock can name it");
  return {
    inodes: planner.inodes,
    treeGroups,
    fileGroups,
    xattrs: facts.xattrs,
    sharedXattrBlock,
    compactMtimeNs: facts.commonMtimeNs,
    blockCount: planner.reserve(0),
    hasChunks: planner.hasChunks,
    rootNid,
  };
}

class Planner {
  readonly inodes = new Map<ErofsNode, PlannedInode>();
  hasChunks = false;
  readonly #facts: Survey;
  /** Block 0 is the superblock's. */
  #nextBlock = 1;

  constructor(facts: Survey) {
    this.#facts = facts;
  }

  /** Takes the next blocks of the image and returns the first. */
  reserve(blocks: number): number {
    const first = this.#nextBlock;
    this.#nextBlock += blocks;
    if (this.#nextBlock > maxBlocks) {
      throw new ServiceError("IMAGE_TOO_LARGE", "the root filesystem is over the 16 TiB that EROFS can hold");
    }
    return first;
  }

  layOut(nodes: Iterable<ErofsNode>, order: "metadata first" | "data first"): Group[] {
    const groups: Group[] = [];
    let slots = new SlotAllocator();
    let members: PlannedInode[] = [];
    let dataBlocks = 0;
    const close = (): void => {
      if (members.length === 0) return;
      const first = this.reserve(slots.blocks + dataBlocks);
      const metadataBlock = order === "metadata first" ? first : first + dataBlocks;
      const dataBlock = order === "metadata first" ? first + slots.blocks : first;
      for (const inode of members) {
        inode.nid += metadataBlock * slotsPerBlock;
        inode.startBlock += dataBlock;
      }
      groups.push({ inodes: members, metadataBlock, metadataBlocks: slots.blocks });
      slots = new SlotAllocator();
      members = [];
      dataBlocks = 0;
    };
    for (const node of nodes) {
      const placed = this.#measure(node);
      const needed = Math.ceil(placed.metadataBytes / slotBytes);
      if (slots.blocks + Math.ceil(needed / slotsPerBlock) > maxGroupBlocks && !slots.fitsInGap(needed)) close();
      const inode: PlannedInode = {
        ...placed.inode,
        ordinal: this.inodes.size + 1,
        nid: slots.place(needed),
        startBlock: dataBlocks,
      };
      dataBlocks += placed.dataBlocks;
      members.push(inode);
      this.inodes.set(node, inode);
    }
    close();
    return groups;
  }

  #measure(node: ErofsNode): {
    inode: Omit<PlannedInode, "ordinal" | "nid" | "startBlock">;
    metadataBytes: number;
    dataBlocks: number;
  } {
    const { metadata } = node;
    const { sizeBytes, detail, linkCount } = this.#shape(node);
    const extended =
      metadata.uid > 0xffff ||
      metadata.gid > 0xffff ||
      linkCount > 0xffff ||
      sizeBytes > 0xffff_ffff ||
      metadata.mtimeNs !== this.#facts.commonMtimeNs;
    const headBytes =
      (extended ? extendedInodeBytes : compactInodeBytes) + this.#facts.xattrs.inodeBytes(metadata.xattrs);
    const common = { node, linkCount, sizeBytes, extended, detail };
    if (detail !== undefined && "bits" in detail) {
      this.hasChunks = true;
      return {
        inode: { ...common, layout: dataLayout.chunks },
        metadataBytes: headBytes + chunkListBytes(detail),
        dataBlocks: detail.storedBlocks,
      };
    }
    const tailBytes = sizeBytes % blockBytes;
    if (tailBytes > 0 && headBytes + tailBytes <= blockBytes) {
      return {
        inode: { ...common, layout: dataLayout.inline },
        metadataBytes: headBytes + tailBytes,
        dataBlocks: (sizeBytes - tailBytes) / blockBytes,
      };
    }
    return {
      inode: { ...common, layout: dataLayout.plain },
      metadataBytes: headBytes,
      dataBlocks: wholeBlocks(sizeBytes),
    };
  }

  #shape(node: ErofsNode): Pick<PlannedInode, "sizeBytes" | "detail" | "linkCount"> {
    const linkCount = this.#facts.linkCounts.get(node) ?? 1;
    switch (node.kind) {
      case "file":
        return { sizeBytes: node.sizeBytes, linkCount, detail: chunkLayout(node) };
      case "symlink":
        return { sizeBytes: node.target.length, linkCount, detail: undefined };
      case "directory": {
        const names = sortedNames(node.children);
        const { starts, lastBytes } = directoryBlocks(names);
        const parent = this.#facts.parents.get(node) ?? node;
        return { sizeBytes: (starts.length - 1) * blockBytes + lastBytes, linkCount, detail: { names, parent } };
      }
      default:
        return { sizeBytes: 0, linkCount, detail: undefined };
    }
  }
}
