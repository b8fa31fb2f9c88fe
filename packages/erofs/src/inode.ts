import type { ChunkLayout } from "./holes.ts";
import type { ErofsNode } from "./tree.ts";

/** A directory's entries in stored order, `.` and `..` among them. */
export interface Entries {
  readonly names: readonly string[];
  readonly inodes: readonly Inode[];
}

/** What an image's tree is made into. One of these exists per node, so it holds little beside numbers. */
export class Inode {
  readonly node: ErofsNode;
  linkCount: number;
  /** Of its content: a file's, a link's target, a directory's entries. */
  sizeBytes = 0;
  /** See `dataLayout`. */
  layout = 0;
  /** In 64 bytes instead of 32. */
  extended = false;
  /** Of a file: whether it has been met in the order of files. */
  isListed = false;
  /** Its number; while its group is being filled, its slot in the group's metadata. */
  nid = -1;
  /** Where its data blocks start; while its group is being filled, counted in the group's data. */
  startBlock = 0;
  /** Of a file with holes, its chunks; of a directory, its entries. */
  detail: ChunkLayout | Entries | undefined;

  constructor(node: ErofsNode, linkCount: number) {
    this.node = node;
    this.linkCount = linkCount;
  }
}

export function chunksOf({ detail }: Inode): ChunkLayout | undefined {
  return detail !== undefined && "bits" in detail ? detail : undefined;
}

export function entriesOf({ detail }: Inode): Entries {
  return detail !== undefined && "names" in detail ? detail : noEntries;
}

const noEntries: Entries = { names: [], inodes: [] };
