import type { ByteString } from "../byte-string.ts";
import type { DataRange } from "../tar/sparse-map.ts";
import type { StoredData } from "./stored-data.ts";

/*
 * A file system tree held as metadata. Names are single components, links to a node are entries of its directories: a
 * hard link is one node under two names. There is nothing to follow and so nothing to escape from.
 */

export interface Metadata {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  readonly xattrs: ReadonlyMap<ByteString, Buffer>;
}

export interface FileNode {
  readonly kind: "file";
  metadata: Metadata;
  readonly sizeBytes: number;
  /** Ranges that hold data, ascending and apart; absent: all of the file. */
  readonly data?: readonly DataRange[];
  /** Where the data is: the layer's place in the image, and what that layer's directory says. */
  readonly layer: number;
  readonly stored: StoredData;
  /** Set when the layer's content is a device of the image and the file has blocks in it. */
  place: { readonly device: number; readonly block: number } | undefined;
}

/** Bytes of the file that are stored: all but its holes. */
export function storedBytes({ sizeBytes, data }: Pick<FileNode, "sizeBytes" | "data">): number {
  return data === undefined ? sizeBytes : data.reduce((total, { length }) => total + length, 0);
}

export interface SymlinkNode {
  readonly kind: "symlink";
  readonly metadata: Metadata;
  readonly target: ByteString;
}

export interface SpecialNode {
  readonly kind: "char" | "block" | "fifo";
  readonly metadata: Metadata;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
}

export interface DirectoryNode {
  readonly kind: "directory";
  metadata: Metadata;
  readonly children: Map<ByteString, Child>;
  /** The last layer whose whiteouts emptied this directory of older names. */
  clearedBy: number;
}

export type TreeNode = FileNode | SymlinkNode | SpecialNode | DirectoryNode;

/** A name in a directory. */
export interface Child {
  readonly node: TreeNode;
  /** The layer that put the name there. */
  layer: number;
}

const maxSymlinkHops = 40; // Linux's own MAXSYMLINKS
/** Components walked for one path, those of link targets included. Bounds the work that one hostile entry can cause. */
const maxWalkSteps = 512;

export type Walk =
  | { readonly outcome: "found"; readonly directories: readonly [DirectoryNode, ...DirectoryNode[]] }
  | { readonly outcome: "missing" }
  | { readonly outcome: "not-a-directory"; readonly name: ByteString }
  | { readonly outcome: "too-many-links" };

/**
 * Walks from `start` (the directories from the root down) to the directory that `components` name, resolving symbolic
 * links inside the tree: an absolute target starts at the root and `..` stops there. `make` supplies a missing
 * directory, or undefined to leave it missing.
 */
export function walk(
  start: readonly [DirectoryNode, ...DirectoryNode[]],
  components: readonly ByteString[],
  make: (parent: DirectoryNode, name: ByteString, depth: number) => DirectoryNode | undefined,
): Walk {
  const [root] = start;
  let directories: [DirectoryNode, ...DirectoryNode[]] = [...start];
  const pending = components.toReversed();
  let hops = 0;
  for (let steps = 0; pending.length > 0; steps++) {
    if (steps > maxWalkSteps) return { outcome: "too-many-links" };
    const name = pending.pop() ?? "";
    if (name === "..") {
      if (directories.length > 1) directories.pop();
      continue;
    }
    const parent = directories.at(-1) ?? root;
    const node = parent.children.get(name)?.node ?? make(parent, name, directories.length);
    if (node === undefined) return { outcome: "missing" };
    if (node.kind === "directory") {
      directories.push(node);
    } else if (node.kind === "symlink") {
      if (++hops > maxSymlinkHops) return { outcome: "too-many-links" };
      if (node.target.startsWith("/")) directories = [root];
      pending.push(...splitTarget(node.target).toReversed());
    } else {
      return { outcome: "not-a-directory", name };
    }
  }
  return { outcome: "found", directories };
}

/** The regular file that an absolute path names inside the tree, links followed; undefined when there is none. */
export function findFile(root: DirectoryNode, path: ByteString): FileNode | undefined {
  let at: readonly [DirectoryNode, ...DirectoryNode[]] = [root];
  let target = path;
  for (let hops = 0; hops <= maxSymlinkHops; hops++) {
    const components = splitTarget(target);
    const name = components.pop();
    const parent = walk(target.startsWith("/") ? [root] : at, components, () => undefined);
    if (name === undefined || parent.outcome !== "found") return undefined;
    const node = parent.directories.at(-1)?.children.get(name)?.node;
    if (node?.kind === "file") return node;
    if (node?.kind !== "symlink") return undefined;
    at = parent.directories;
    target = node.target;
  }
  return undefined;
}

/** Components of a link target; `..` stays, `.` and empty ones go. */
export function splitTarget(target: ByteString): ByteString[] {
  return target.split("/").filter((component) => component !== "" && component !== ".");
}
