import { ServiceError } from "@unkey/base";
import { maxNameBytes, maxTargetBytes } from "./format.ts";
import { checkRanges } from "./holes.ts";
import type { ErofsDirectory, ErofsFile, ErofsNode } from "./tree.ts";
import { XattrTable } from "./xattr-table.ts";

/** What must be known of the whole tree before any of it has a place. */
export interface Survey {
  /** Everything but files, the root first, then depth first by name. */
  readonly treeNodes: readonly ErofsNode[];
  /** Of directories, and of nodes with more names than one; any other has 1. */
  readonly linkCounts: ReadonlyMap<ErofsNode, number>;
  readonly parents: ReadonlyMap<ErofsDirectory, ErofsDirectory>;
  /** The mtime that most inodes have; of equally frequent ones the oldest. */
  readonly commonMtimeNs: bigint;
  readonly xattrs: XattrTable;
}

const maxId = 0xffff_ffff;
const maxSeconds = 2n ** 63n;
const maxDeviceMajor = 0xfff;
const maxDeviceMinor = 0xf_ffff;

/** Walks the tree once and checks that each of its nodes can be an inode. */
export function survey(root: ErofsDirectory, files: readonly ErofsFile[]): Survey {
  const pendingFiles = new Set<ErofsNode>(files);
  if (pendingFiles.size !== files.length) throw new RangeError("a file is listed twice");
  const treeNodes: ErofsNode[] = [];
  const seen = new Set<ErofsNode>([root]);
  const linkCounts = new Map<ErofsNode, number>();
  const parents = new Map<ErofsDirectory, ErofsDirectory>();
  const mtimes = new Map<bigint, number>();
  const xattrs = new XattrTable();
  const meet = (node: ErofsNode, name: string): void => {
    check(node, name);
    mtimes.set(node.metadata.mtimeNs, (mtimes.get(node.metadata.mtimeNs) ?? 0) + 1);
    if (node.metadata.xattrs.size > 0) xattrs.count(node.metadata.xattrs, printable(name));
    if (node.kind !== "file") treeNodes.push(node);
    else if (!pendingFiles.delete(node)) throw new RangeError(`the file ${printable(name)} is not listed`);
  };
  meet(root, "/");
  const pending: ErofsDirectory[] = [root];
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    const below: ErofsDirectory[] = [];
    for (const name of [...directory.children.keys()].sort()) {
      const node = directory.children.get(name)?.node;
      if (node === undefined) continue;
      checkName(name);
      if (seen.has(node)) {
        if (node.kind === "directory") throw new RangeError(`the directory ${printable(name)} is in two places`);
        linkCounts.set(node, (linkCounts.get(node) ?? 1) + 1);
        continue;
      }
      seen.add(node);
      meet(node, name);
      if (node.kind !== "directory") continue;
      below.push(node);
      parents.set(node, directory);
    }
    linkCounts.set(directory, 2 + below.length);
    pending.push(...below.toReversed());
  }
  if (pendingFiles.size > 0) throw new RangeError(`${pendingFiles.size} listed files are not in the tree`);
  xattrs.seal();
  return { treeNodes, linkCounts, parents, commonMtimeNs: mostFrequent(mtimes), xattrs };
}

function mostFrequent(counts: ReadonlyMap<bigint, number>): bigint {
  let best = 0n;
  let most = 0;
  for (const [value, count] of counts) {
    if (count < most || (count === most && value > best)) continue;
    best = value;
    most = count;
  }
  return best;
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
