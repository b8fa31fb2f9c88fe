import { ServiceError } from "@unkey/base";
import { sortedNames } from "./directory.ts";
import { maxNameBytes, maxTargetBytes } from "./format.ts";
import { checkRanges } from "./holes.ts";
import { Inode } from "./inode.ts";
import type { ErofsDirectory, ErofsFile, ErofsNode } from "./tree.ts";
import { XattrTable } from "./xattr-table.ts";

/** What must be known of the whole tree before any of it has a place. */
export interface Survey {
  /** Of every node once. */
  readonly inodes: ReadonlyMap<ErofsNode, Inode>;
  /** Everything but files, the root first, then depth first by name. */
  readonly treeInodes: readonly Inode[];
  readonly fileInodes: readonly Inode[];
  /** The mtime that most inodes have; of equally frequent ones the oldest. */
  readonly commonMtimeNs: bigint;
  readonly xattrs: XattrTable;
}

const maxId = 0xffff_ffff;
const maxSeconds = 2n ** 63n;
const maxDeviceMajor = 0xfff;
const maxDeviceMinor = 0xf_ffff;

/** Walks the tree once and checks that each of its nodes can be an inode and that `files` are exactly its files. */
export function survey(root: ErofsDirectory, files: readonly ErofsFile[]): Survey {
  const inodes = new Map<ErofsNode, Inode>();
  const treeInodes: Inode[] = [];
  const mtimes = new MtimeCounts();
  const xattrs = new XattrTable();
  const meet = (node: ErofsNode, name: string): Inode => {
    check(node, name);
    mtimes.add(node.metadata.mtimeNs);
    if (node.metadata.xattrs.size > 0) xattrs.count(node.metadata.xattrs, printable(name));
    const inode = new Inode(node, node.kind === "directory" ? 2 : 1);
    inodes.set(node, inode);
    if (node.kind !== "file") treeInodes.push(inode);
    return inode;
  };
  const rootInode = meet(root, "/");
  const pending = [{ directory: root, inode: rootInode, parent: rootInode }];
  for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
    const { directory, inode, parent } = at;
    const below: typeof pending = [];
    for (const name of directory.children.keys()) checkName(name);
    const names = sortedNames(directory.children);
    const entries = names.map((name): Inode => {
      const node = directory.children.get(name)?.node;
      if (node === undefined) return name === "." ? inode : parent;
      const met = inodes.get(node);
      if (met === undefined) {
        const child = meet(node, name);
        if (node.kind === "directory") below.push({ directory: node, inode: child, parent: inode });
        return child;
      }
      if (node.kind === "directory") throw new RangeError(`the directory ${printable(name)} is in two places`);
      met.linkCount++;
      return met;
    });
    inode.detail = { names, inodes: entries };
    inode.linkCount = 2 + below.length;
    pending.push(...below.toReversed());
  }
  const fileInodes = listedInodes(files, inodes);
  if (fileInodes.length + treeInodes.length !== inodes.size) throw new RangeError("a file of the tree is not listed");
  xattrs.seal();
  return { inodes, treeInodes, fileInodes, commonMtimeNs: mtimes.mostFrequent(), xattrs };
}

function listedInodes(files: readonly ErofsFile[], inodes: ReadonlyMap<ErofsNode, Inode>): Inode[] {
  return files.map((file) => {
    const inode = inodes.get(file);
    if (inode === undefined) throw new RangeError("a listed file is not in the tree");
    if (inode.isListed) throw new RangeError("a file is listed twice");
    inode.isListed = true;
    return inode;
  });
}

class MtimeCounts {
  readonly #counts = new Map<bigint, number>();
  /** What was added last, and how often in a row: neighbours mostly share it. */
  #last = 0n;
  #inRow = 0;

  add(mtimeNs: bigint): void {
    if (mtimeNs !== this.#last) this.#settle();
    this.#last = mtimeNs;
    this.#inRow++;
  }

  mostFrequent(): bigint {
    this.#settle();
    let best = 0n;
    let most = 0;
    for (const [value, count] of this.#counts) {
      if (count < most || (count === most && value > best)) continue;
      best = value;
      most = count;
    }
    return best;
  }

  #settle(): void {
    if (this.#inRow > 0) this.#counts.set(this.#last, (this.#counts.get(this.#last) ?? 0) + this.#inRow);
    this.#inRow = 0;
  }
}

function checkName(name: string): void {
  if (name.length > maxNameBytes) {
    throw new ServiceError(
      "IMAGE_LAYER_INVALID",
      `the name ${printable(name)} has ${name.length} bytes; EROFS holds ${maxNameBytes}`,
    );
  }
  if (name === "" || name === "." || name === ".." || /[\0/\u0100-\uffff]/.test(name)) {
    throw new RangeError(`${printable(name)} is not a name of a directory entry`);
  }
}

function check(node: ErofsNode, name: string): void {
  const { mode, uid, gid, mtimeNs } = node.metadata;
  const fits = (value: number, max: number): boolean => Number.isInteger(value) && value >= 0 && value <= max;
  if (!fits(mode, 0o7777)) throw new RangeError(`mode ${mode} of ${printable(name)} is more than permission bits`);
  if (!fits(uid, maxId) || !fits(gid, maxId)) throw new RangeError(`owner of ${printable(name)} is not 32 bits wide`);
  if (mtimeNs >= maxSeconds * 1_000_000_000n || mtimeNs < -maxSeconds * 1_000_000_000n) {
    throw new RangeError(`mtime of ${printable(name)} does not fit 64 bits of seconds`);
  }
  if (node.kind === "file") checkRanges(node);
  if (node.kind === "symlink") checkTarget(node.target, name);
  if (node.kind === "char" || node.kind === "block") {
    if (!fits(node.deviceMajor, maxDeviceMajor) || !fits(node.deviceMinor, maxDeviceMinor)) {
      throw new ServiceError("IMAGE_LAYER_INVALID", `device numbers of ${printable(name)} are over what Linux has`);
    }
  }
}

function checkTarget(target: string, name: string): void {
  if (target.length > maxTargetBytes) {
    throw new ServiceError(
      "IMAGE_LAYER_INVALID",
      `the target of link ${printable(name)} has ${target.length} bytes; Linux reads ${maxTargetBytes}`,
    );
  }
  if (target === "" || /[\0\u0100-\uffff]/.test(target)) throw new RangeError(`${printable(name)} links to no path`);
}

function printable(name: string): string {
  return JSON.stringify(Buffer.from(name.slice(0, 120), "latin1").toString("utf8"));
}
