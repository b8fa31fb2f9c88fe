import {
  closeSync,
  ftruncateSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  openSync,
  symlinkSync,
  utimesSync,
  writeSync,
} from "node:fs";
import { type ByteString, toBytes } from "../byte-string.ts";
import { type FileNode, storedBytes, type TreeNode } from "../layer/tree.ts";
import { pathOf } from "../rootfs/visit-tree.ts";

const sep = Buffer.from("/");

/** Every node with all its names, in the order in which `visitTree` meets them. */
export function namesOf(
  visit: (each: (directory: ByteString, name: ByteString, node: TreeNode) => void) => void,
): Map<TreeNode, ByteString[]> {
  const names = new Map<TreeNode, ByteString[]>();
  visit((directory, name, node) => {
    const path = pathOf(directory, name);
    const known = names.get(node);
    if (known === undefined) names.set(node, [path]);
    else known.push(path);
  });
  return names;
}

/**
 * Makes a tree's directories, symbolic links under their first names, and files below an existing empty directory, as the user that runs this, without owners,
 * modes or attributes. Each path is made below directories made here before, none of which is a link, so nothing can lead
 * elsewhere. The work is synchronous: it is one short system call after another.
 */
export async function stageTree(
  names: ReadonlyMap<TreeNode, readonly ByteString[]>,
  files: readonly FileNode[],
  content: AsyncIterable<Uint8Array>,
  directory: string,
): Promise<void> {
  const base = Buffer.from(directory);
  const at = (path: ByteString): Buffer => Buffer.concat([base, sep, toBytes(path)]);
  for (const [node, [first = ""]] of names) {
    if (node.kind === "directory") mkdirSync(at(first), { mode: 0o700 });
    if (node.kind === "symlink") symlinkSync(toBytes(node.target), at(first));
  }
  await writeFiles(files, content, (file) => at(names.get(file)?.[0] ?? ""));
  for (const [node, [first = "", ...others]] of names) {
    if (node.kind !== "file") continue; // of others, mke2fs would copy each name by itself
    for (const other of others) linkSync(at(first), at(other));
  }
  // Last, and children before their directories, whose times change with each name made in them.
  for (const [node, [first = ""]] of [...names].toReversed()) {
    const seconds = Number(node.metadata.mtimeNs / 1_000_000_000n);
    if (node.kind === "symlink") lutimesSync(at(first), seconds, seconds);
    else if (node.kind === "file" || node.kind === "directory") utimesSync(at(first), seconds, seconds);
  }
}

async function writeFiles(
  files: readonly FileNode[],
  content: AsyncIterable<Uint8Array>,
  pathOf: (file: FileNode) => Buffer,
): Promise<void> {
  const chunks = content[Symbol.asyncIterator]();
  let chunk: Uint8Array = new Uint8Array(0);
  try {
    for (const file of files) {
      const fd = openSync(pathOf(file), "wx", 0o600);
      try {
        if (file.data !== undefined) ftruncateSync(fd, file.sizeBytes);
        for (const range of file.data ?? [{ offset: 0, length: storedBytes(file) }]) {
          for (let done = 0; done < range.length; ) {
            if (chunk.length === 0) {
              const next = await chunks.next();
              if (next.done === true) throw new RangeError("the content ends before the files do");
              chunk = next.value;
            }
            const written = writeSync(fd, chunk, 0, Math.min(chunk.length, range.length - done), range.offset + done);
            chunk = chunk.subarray(written);
            done += written;
          }
        }
      } finally {
        closeSync(fd);
      }
    }
  } finally {
    await chunks.return?.();
  }
}
