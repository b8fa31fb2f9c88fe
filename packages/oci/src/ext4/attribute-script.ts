import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ServiceError } from "@unkey/base";
import { type ByteString, printable, toBytes } from "../byte-string.ts";
import type { TreeNode } from "../layer/tree.ts";

export interface NumberedNode {
  readonly node: TreeNode;
  /** Undefined for a device or a pipe, which the script makes. */
  readonly inode: number | undefined;
  /** The first of its names. */
  readonly path: ByteString;
  readonly linkCount: number;
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
 * Commands for debugfs that give each inode its owner, mode, times and attributes, and make devices and pipes. Inodes are named
 * by number: a name needs telling only where it is made. Attribute values go into files below `scratch`.
 */
export async function attributeScript(
  { nodes, hasLostFound }: { readonly nodes: readonly NumberedNode[]; readonly hasLostFound: boolean },
  names: ReadonlyMap<TreeNode, readonly ByteString[]>,
  scratch: string,
): Promise<Buffer> {
  const lines: string[] = [];
  const values = new Map<string, string>();
  for (const { node, inode, path, linkCount } of nodes) {
    let spec = `<${inode}>`;
    if (inode === undefined && "deviceMajor" in node) {
      spec = quoted(path, `/${path}`);
      const kind = { char: "c", block: "b", fifo: "p" }[node.kind];
      const numbers = node.kind === "fifo" ? "" : " 0 0"; // its own arguments end at 16 bits
      lines.push(`cd ${quoted(path, `/${parentOf(path)}`)}`, `mknod ${quoted(path, lastOf(path))} ${kind}${numbers}`);
      if (node.kind !== "fifo") {
        const [older, newer] = encodeDevice(node.deviceMajor, node.deviceMinor);
        lines.push(`sif ${spec} block[0] ${older}`, `sif ${spec} block[1] ${newer}`);
      }
      for (const other of names.get(node)?.slice(1) ?? []) {
        lines.push(`cd ${quoted(other, `/${parentOf(other)}`)}`, `ln ${spec} ${quoted(other, lastOf(other))}`);
      }
      if (linkCount > 1) lines.push(`sif ${spec} links_count ${linkCount}`);
    }
    const { mode, uid, gid, mtimeNs, xattrs } = node.metadata;
    lines.push(`sif ${spec} mode 0${(typeBits[node.kind] | mode).toString(8)}`);
    lines.push(`sif ${spec} uid ${uid}`, `sif ${spec} gid ${gid}`);
    const seconds = mtimeNs / 1_000_000_000n;
    // Nanoseconds above two bits that carry the seconds beyond 2038 (Linux, fs/ext4/ext4.h, "ext4_encode_extra_time").
    const extra = ((mtimeNs % 1_000_000_000n) << 2n) | (seconds >= 2n ** 31n ? 1n : 0n);
    for (const time of ["atime", "ctime", "mtime", "crtime"]) {
      lines.push(`sif ${spec} ${time} @${seconds}`, `sif ${spec} ${time}_extra ${extra}`);
    }
    for (const [name, value] of xattrs) {
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
  return toBytes(`${lines.join("\n")}\n`);
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
