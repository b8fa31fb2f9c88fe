import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ServiceError } from "@unkey/base";
import { type ByteString, printable, toBytes } from "../byte-string.ts";
import type { SpecialNode, TreeNode } from "../layer/tree.ts";

export interface NumberedNode {
  readonly node: TreeNode;
  /** Undefined for a device or a pipe, which the script makes. */
  readonly inode: number | undefined;
  /** The first of its names. */
  readonly path: ByteString;
}

const typeBits = {
  file: 0o100000,
  directory: 0o040000,
  symlink: 0o120000,
  char: 0o020000,
  block: 0o060000,
  fifo: 0o010000,
};

/**
 * Commands for debugfs that give each inode its owner, mode, times and attributes as far as staging could not, and make devices
 * and pipes. Inodes are named by number: a name needs telling only where it is made. Attribute values go into files below
 * `scratch`. Comes in pieces, for a tree may have hundreds of thousands of inodes.
 */
export async function* attributeScript(
  { nodes, hasLostFound }: { readonly nodes: readonly NumberedNode[]; readonly hasLostFound: boolean },
  names: ReadonlyMap<TreeNode, readonly ByteString[]>,
  scratch: string,
): AsyncGenerator<Buffer> {
  const values = new Map<string, string>();
  let lines: string[] = [];
  for (const { node, inode, path } of nodes) {
    if (lines.length > 1000) {
      yield toBytes(`${lines.join("\n")}\n`);
      lines = [];
    }
    const spec = inode === undefined ? quoted(path, `/${path}`) : `<${inode}>`;
    if ("deviceMajor" in node) lines.push(...makeSpecial(node, path, spec));
    if (node.kind !== "file" && node.kind !== "directory") lines.push(...linkLines(spec, names.get(node) ?? []));
    lines.push(...metadataLines(node, spec, inode !== undefined && path !== ""));
    for (const [name, value] of node.metadata.xattrs) {
      const key = value.toString("latin1");
      let file = values.get(key);
      if (file === undefined) {
        file = join(scratch, `value-${values.size}`);
        values.set(key, file);
        await writeFile(file, value);
      }
      lines.push(`ea_set -f ${quoted(path, Buffer.from(file).toString("latin1"))} ${spec} ${quoted(path, name)}`);
    }
  }
  if (!hasLostFound) lines.push("cd /", "rmdir lost+found");
  yield toBytes(`${lines.join("\n")}\n`);
}

function makeSpecial(node: SpecialNode, path: ByteString, spec: string): string[] {
  const kind = { char: "c", block: "b", fifo: "p" }[node.kind];
  const numbers = node.kind === "fifo" ? "" : " 0 0"; // its own arguments end at 16 bits
  const lines = [`cd ${quoted(path, `/${parentOf(path)}`)}`, `mknod ${quoted(path, lastOf(path))} ${kind}${numbers}`];
  if (node.kind !== "fifo") {
    const [older, newer] = encodeDevice(node.deviceMajor, node.deviceMinor);
    lines.push(`sif ${spec} block[0] ${older}`, `sif ${spec} block[1] ${newer}`);
  }
  return lines;
}

/** Further names of what staging made under one name only, or not at all. */
function linkLines(spec: string, [, ...others]: readonly ByteString[]): string[] {
  if (others.length === 0) return [];
  const lines = [`sif ${spec} links_count ${1 + others.length}`];
  for (const other of others) {
    lines.push(`cd ${quoted(other, `/${parentOf(other)}`)}`, `ln ${spec} ${quoted(other, lastOf(other))}`);
  }
  return lines;
}

/** Staging keeps whole seconds until 2038, whatever the host's file system, and its own user; of the root, mke2fs copies nothing. */
function metadataLines(node: TreeNode, spec: string, isStaged: boolean): string[] {
  const { mode, uid, gid, mtimeNs } = node.metadata;
  const seconds = mtimeNs / 1_000_000_000n;
  const isLate = seconds >= 2n ** 31n;
  // Nanoseconds above two bits that carry the seconds beyond 2038 (Linux, fs/ext4/ext4.h, "ext4_encode_extra_time").
  const extra = ((mtimeNs % 1_000_000_000n) << 2n) | (isLate ? 1n : 0n);
  const lines = [`sif ${spec} mode 0${(typeBits[node.kind] | mode).toString(8)}`];
  if (!isStaged || uid !== process.getuid?.()) lines.push(`sif ${spec} uid ${uid}`);
  if (!isStaged || gid !== process.getgid?.()) lines.push(`sif ${spec} gid ${gid}`);
  for (const time of ["atime", "ctime", "mtime"]) {
    if (!isStaged || isLate || time === "ctime") lines.push(`sif ${spec} ${time} @${seconds}`);
    if (extra !== 0n) lines.push(`sif ${spec} ${time}_extra ${extra}`);
  }
  return lines;
}

/** A device's number as the first two block addresses of its inode (Linux, fs/ext4/inode.c, include/linux/kdev_t.h). */
function encodeDevice(major: number, minor: number): [older: number, newer: number] {
  if (major < 256 && minor < 256) return [(major << 8) | minor, 0];
  return [0, ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0];
}

/** A word for debugfs, which reads a line at a time. `path` is told when that is impossible. */
function quoted(path: ByteString, word: ByteString): string {
  if (word.includes("\n")) throw unsupported(path, "has a line break in a name that ext4's tools must be told");
  return `"${word.replaceAll('"', '""')}"`;
}

function parentOf(path: ByteString): ByteString {
  return path.slice(0, Math.max(0, path.lastIndexOf("/")));
}

function lastOf(path: ByteString): ByteString {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** The refusal of a path that EROFS would hold. */
export function unsupported(path: ByteString, why: string): ServiceError {
  return new ServiceError("IMAGE_UNSUPPORTED", `${printable(`/${path}`)} ${why}`, {
    nextStep: "Build the image as EROFS, which holds every name.",
  });
}
