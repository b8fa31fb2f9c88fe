import type { ChunkLayout } from "./holes.ts";
import type { ErofsDirectory, ErofsNode } from "./tree.ts";

/** What an image's tree is made into. One of these exists per node, so it holds little beside numbers. */
export class Inode {
  readonly node: ErofsNode;
  linkCount: number;
  /** Of a directory, to find `..`; its own parent is the root's. */
  readonly parent: ErofsDirectory | undefined;
  /** Of its content: a file's, a link's target, a directory's entries. */
  sizeBytes = 0;
  /** See `dataLayout`. */
  layout = 0;
  /** In 64 bytes instead of 32. */
  extended = false;
  /** Its number; while its group is being filled, its slot in the group's metadata. */
  nid = -1;
  /** Where its data blocks start; while its group is being filled, counted in the group's data. */
  startBlock = 0;
  /** Of a file with holes, its chunks; of a directory, its names in stored order. */
  detail: ChunkLayout | readonly string[] | undefined;

  constructor(node: ErofsNode, linkCount: number, parent?: ErofsDirectory) {
    this.node = node;
    this.linkCount = linkCount;
    this.parent = parent;
  }
}

export function chunksOf({ detail }: Inode): ChunkLayout | undefined {
  return detail !== undefined && "bits" in detail ? detail : undefined;
}

export function namesOf({ detail }: Inode): readonly string[] {
  return detail !== undefined && !("bits" in detail) ? detail : [];
}
