import { createHash } from "node:crypto";
import { mkdir, mkdtemp, open, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { mib, ServiceError } from "@unkey/base";
import type { ByteString } from "../byte-string.ts";
import { type DirectoryNode, type FileNode, storedBytes, type TreeNode } from "../layer/tree.ts";
import { visitTree } from "../rootfs/visit-tree.ts";
import { runTool } from "../run-tool.ts";
import { attributeScript, type NumberedNode, unsupported } from "./attribute-script.ts";
import { namesOf, stageTree } from "./stage-tree.ts";

export interface Ext4Options {
  readonly root: DirectoryNode;
  /** Every file of the tree once, in the order in which `content` supplies their data. */
  readonly files: readonly FileNode[];
  readonly content: AsyncIterable<Uint8Array>;
  /** Is replaced. */
  readonly imagePath: string;
  /** What the image is made from; the file system's UUID is derived from it. */
  readonly identity: string;
  /** Existing private directory; what is made in it is removed again. */
  readonly scratchDirectory: string;
  readonly signal: AbortSignal;
}

const blockBytes = 4096;
const inodeBytes = 256;
const firstInode = 11; // mke2fs gives it to lost+found
/** Everything that the file system says about when it was made. */
const epoch = "1700000000";
const features = [
  "none",
  "ext_attr",
  "dir_index",
  "filetype",
  "extent",
  "64bit",
  "flex_bg",
  "sparse_super",
  "large_file",
  "huge_file",
  "dir_nlink",
  "extra_isize",
  "metadata_csum",
];

/** The host's own settings must not show; the sizes that mke2fs tells apart are named only to be known. */
const configText = `[fs_types]\n${["floppy", "small", "big", "huge"].map((type) => `${type} = {\nblocksize = 4096\n}\n`).join("")}`;

/**
 * Writes a tree as an ext4 image with mke2fs and debugfs (e2fsprogs 1.47), without privilege: mke2fs copies a directory that
 * is staged with this process's own rights, then debugfs sets what only root could have staged: owners, modes, attributes,
 * exact times, devices. The same tree and identity give the same bytes: mke2fs copies names in order of their bytes and numbers
 * inodes as it goes, which is also how the script for debugfs knows them. Throws ROOTFS_TOOL_MISSING, ROOTFS_WRITE_FAILED,
 * ROOTFS_DISK_FULL, or IMAGE_UNSUPPORTED for a name that debugfs cannot be told.
 */
export async function writeExt4(options: Ext4Options): Promise<{ sizeBytes: number }> {
  const { root, files, content, imagePath, identity, signal } = options;
  const names = namesOf((each) => visitTree(root, each));
  const scratch = await mkdtemp(join(options.scratchDirectory, "ext4-"));
  try {
    const staged = join(scratch, "root");
    await mkdir(staged, { mode: 0o700 });
    await stageTree(names, files, content, staged);
    signal.throwIfAborted();
    const numbered = numberInodes(root, names);
    const sizeBytes = imageBytes(names);
    const env = { E2FSPROGS_FAKE_TIME: epoch, MKE2FS_CONFIG: join(scratch, "mke2fs.conf") };
    await writeFile(env.MKE2FS_CONFIG, configText);
    await rm(imagePath, { force: true });
    await writeFile(imagePath, "", { mode: 0o600 });
    await truncate(imagePath, sizeBytes);
    const uuid = uuidOf(identity);
    await runTool({
      command: "mke2fs",
      package: "e2fsprogs",
      args: [
        "-q",
        "-F",
        `-b${blockBytes}`,
        `-I${inodeBytes}`,
        `-N${names.size + 32}`,
        "-m0",
        `-O${features.join(",")}`,
        `-U${uuid}`,
        `-d${staged}`,
        `-Ehash_seed=${uuid},lazy_itable_init=0,nodiscard,root_owner=0:0`,
        imagePath,
      ],
      env,
      signal,
    });
    await checkInodes(imagePath, numbered.inodes);
    const script = join(scratch, "attributes");
    await writeFile(script, attributeScript(numbered, names, scratch));
    await runTool({
      command: "debugfs",
      package: "e2fsprogs",
      args: ["-w", "-f", script, imagePath],
      env,
      harmless: /^debugfs \d/,
      signal,
    });
    return { sizeBytes };
  } catch (error) {
    await rm(imagePath, { force: true });
    throw error;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** The numbers that mke2fs gives: one after the other in order of paths, but for lost+found, which it always makes first. */
function numberInodes(
  root: DirectoryNode,
  names: ReadonlyMap<TreeNode, readonly ByteString[]>,
): { nodes: NumberedNode[]; inodes: number; hasLostFound: boolean } {
  const nodes: NumberedNode[] = [{ node: root, inode: 2, path: "" }];
  let hasLostFound = false;
  let last = firstInode;
  for (const [node, [path = ""]] of names) {
    if (path === "lost+found") {
      if (node.kind !== "directory") throw unsupported(path, "stands where ext4 has a directory");
      hasLostFound = true;
      nodes.push({ node, inode: firstInode, path });
    } else if (node.kind === "char" || node.kind === "block" || node.kind === "fifo") {
      nodes.push({ node, inode: undefined, path });
    } else {
      nodes.push({ node, inode: ++last, path });
    }
  }
  return { nodes, inodes: last, hasLostFound };
}

/** Compares the superblock's count of inodes in use with ours: another version of mke2fs might number them differently. */
async function checkInodes(imagePath: string, expected: number): Promise<void> {
  await using image = await open(imagePath);
  const superblock = Buffer.alloc(1024);
  await image.read(superblock, 0, 1024, 1024);
  const used = superblock.readUInt32LE(0) - superblock.readUInt32LE(16);
  if (used === expected) return;
  throw new ServiceError("ROOTFS_WRITE_FAILED", "mke2fs could not write the root filesystem", {
    cause: new Error(`mke2fs used ${used} inodes instead of ${expected}`),
  });
}

/** Room for everything, generously: what is not used stays a hole in the file. */
function imageBytes(names: ReadonlyMap<TreeNode, readonly ByteString[]>): number {
  const blocks = (bytes: number): number => Math.ceil(bytes / blockBytes);
  let total = 0;
  for (const [node] of names) {
    if (node.metadata.xattrs.size > 0) total++;
    if (node.kind === "symlink") total++;
    if (node.kind === "file") {
      total += blocks(storedBytes(node)) + 2 * (node.data?.length ?? 0) + Math.ceil(storedBytes(node) / (128 * mib));
    }
    if (node.kind === "directory") {
      let bytes = 64;
      for (const name of node.children.keys()) bytes += 12 + name.length;
      total += 1 + blocks(2 * bytes);
    }
  }
  const inodes = blocks((names.size + 64) * inodeBytes * 2);
  return Math.ceil(((total + inodes) * 1.05 + (16 * mib) / blockBytes) / 256) * 256 * blockBytes;
}

/** A version 8 UUID (RFC 9562: the form for derived values) of a text. */
function uuidOf(text: string): string {
  const bytes = createHash("sha256").update(text).digest().subarray(0, 16);
  bytes.writeUInt8((bytes.readUInt8(6) & 0x0f) | 0x80, 6);
  bytes.writeUInt8((bytes.readUInt8(8) & 0x3f) | 0x80, 8);
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
