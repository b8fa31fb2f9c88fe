import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { blockBytes, fileDataOf, maxInlineTailBytes } from "../format.ts";
import type { ErofsDevice, ErofsDirectory, ErofsFile, ErofsMetadata, ErofsNode, ErofsRange } from "../tree.ts";
import { type ErofsImage, writeErofs } from "../write-erofs.ts";
import type { Seen } from "./mounted.ts";

export function metadataOf(part: Partial<ErofsMetadata> = {}): ErofsMetadata {
  return { mode: 0o644, uid: 0, gid: 0, mtimeNs: 1_700_000_000_000_000_000n, xattrs: new Map(), ...part };
}

export function fileOf(sizeBytes: number, part: Partial<ErofsMetadata> = {}, data?: readonly ErofsRange[]): ErofsFile {
  return { kind: "file", metadata: metadataOf(part), sizeBytes, ...(data === undefined ? {} : { data }) };
}

export function directoryOf(
  children: Readonly<Record<string, ErofsNode>> | readonly (readonly [string, ErofsNode])[],
  part: Partial<ErofsMetadata> = {},
): ErofsDirectory {
  const entries: readonly (readonly [string, ErofsNode])[] = Array.isArray(children)
    ? (children as readonly (readonly [string, ErofsNode])[])
    : Object.entries(children as Readonly<Record<string, ErofsNode>>);
  return {
    kind: "directory",
    metadata: metadataOf({ mode: 0o755, ...part }),
    children: new Map(entries.map(([name, node]) => [name, { node }])),
  };
}

/** Every path of a tree with its node, the root as "". */
export function pathsOf(root: ErofsDirectory): Map<string, ErofsNode> {
  const found = new Map<string, ErofsNode>();
  const pending: [string, ErofsNode][] = [["", root]];
  for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
    const [path, node] = at;
    found.set(path, node);
    if (node.kind !== "directory") continue;
    for (const [name, child] of node.children) pending.push([path === "" ? name : `${path}/${name}`, child.node]);
  }
  return found;
}

export function filesOf(root: ErofsDirectory): ErofsFile[] {
  const files = [...pathsOf(root).values()].filter((node) => node.kind === "file");
  return [...new Set(files)];
}

export function contentBytesOf(file: ErofsFile): number {
  return file.data?.reduce((total, { length }) => total + length, 0) ?? file.sizeBytes;
}

/** Bytes that tell files and positions apart and are nowhere zero. */
export function contentOf(index: number, bytes: number): Buffer {
  const content = Buffer.alloc(bytes, `${index}:`);
  for (let at = 0; at + 8 <= bytes; at += 512) content.write((at / 512).toString(36).padStart(8, "_"), at);
  return content;
}

/**
 * The same tree with its files' blocks in devices, in turn; not those of every file, since a file with holes or with attributes that
 * leave no room for a tail has its place in the image. `devices` are the bytes of each.
 */
export function inDevices(root: ErofsDirectory, deviceCount: number): { root: ErofsDirectory; devices: Buffer[] } {
  const parts: Buffer[][] = Array.from({ length: deviceCount }, () => []);
  const blocksUsed = parts.map(() => 0);
  const placed = new Map<ErofsNode, ErofsNode>();
  for (const [index, file] of filesOf(root).entries()) {
    const device = index % deviceCount;
    const { blocks, tailBytes } = fileDataOf(file.sizeBytes);
    let headBytes = 76;
    for (const [name, value] of file.metadata.xattrs) headBytes += name.length + value.length + 4;
    const hasRoom = tailBytes === 0 || headBytes <= blockBytes - maxInlineTailBytes;
    if (file.data !== undefined || !hasRoom) continue;
    placed.set(file, { ...file, place: { device, block: blocksUsed[device] ?? 0 } });
    const bytes = Buffer.alloc(blocks * blockBytes);
    contentOf(index, file.sizeBytes).copy(bytes, 0, 0, file.sizeBytes - tailBytes);
    parts[device]?.push(bytes);
    blocksUsed[device] = (blocksUsed[device] ?? 0) + blocks;
  }
  const rebuilt = (directory: ErofsDirectory): ErofsDirectory => ({
    ...directory,
    children: new Map(
      [...directory.children].map(([name, { node }]) => [
        name,
        { node: node.kind === "directory" ? rebuilt(node) : (placed.get(node) ?? node) },
      ]),
    ),
  });
  // A block more, so that none is empty.
  return {
    root: rebuilt(root),
    devices: parts.map((each) => Buffer.concat([...each, Buffer.alloc(blockBytes, 0xee)])),
  };
}

/** What the content stream brings of a file that `contentOf` gives its data. */
function streamedOf(file: ErofsFile, index: number): Buffer {
  const content = contentOf(index, contentBytesOf(file));
  return file.place === undefined ? content : content.subarray(content.length - fileDataOf(file.sizeBytes).tailBytes);
}

/** The content stream of a list of files, in chunks of the given sizes, which are taken in turn. */
export async function* contentStream(
  files: readonly ErofsFile[],
  chunkBytes: readonly number[] = [1 << 20],
): AsyncGenerator<Buffer> {
  const all = Buffer.concat(files.map(streamedOf));
  for (let at = 0, turn = 0; at < all.length; turn++) {
    const size = chunkBytes[turn % chunkBytes.length] ?? 1;
    // Each chunk is a copy that is spoilt once the next is asked for: the writer may not keep it.
    const chunk = Buffer.from(all.subarray(at, at + size));
    yield chunk;
    chunk.fill(0xee);
    at += size;
  }
}

export function fileDigest(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}

export async function writeImage(
  directory: string,
  root: ErofsDirectory,
  options: { name?: string; chunkBytes?: readonly number[]; devices?: readonly Buffer[] } = {},
): Promise<ErofsImage & { imagePath: string; digest: string; devicePaths: string[]; devices: ErofsDevice[] }> {
  const imagePath = join(directory, options.name ?? "image");
  const devicePaths: string[] = [];
  const devices = (options.devices ?? []).map((bytes, index) => {
    const path = `${imagePath}.${index + 1}`;
    devicePaths.push(path);
    writeFileSync(path, bytes);
    return { digest: fileDigest(path), blockCount: bytes.length / blockBytes };
  });
  const files = filesOf(root);
  const image = await writeErofs({
    root,
    files,
    devices,
    content: contentStream(files, options.chunkBytes),
    imagePath,
    identity: "test",
    signal: new AbortController().signal,
  });
  return { ...image, imagePath, digest: fileDigest(imagePath), devicePaths, devices };
}

const typeBits = {
  file: 0o100000,
  directory: 0o040000,
  char: 0o020000,
  block: 0o060000,
  fifo: 0o010000,
  symlink: 0o120000,
} as const;

/** What a tree says about each of its paths, in words that `seenPaths` uses too. */
export function expectedPaths(root: ErofsDirectory): Record<string, string> {
  const paths = pathsOf(root);
  const names = new Map<ErofsNode, string[]>();
  for (const path of [...paths.keys()].sort()) {
    const node = paths.get(path) ?? root;
    const group = names.get(node);
    if (group === undefined) names.set(node, [path]);
    else group.push(path);
  }
  const order = new Map(filesOf(root).map((file, index) => [file, index]));
  const told: Record<string, string> = {};
  for (const [node, group] of names) {
    const { mode, uid, gid, mtimeNs, xattrs } = node.metadata;
    const subdirectories =
      node.kind === "directory" ? [...node.children.values()].filter((child) => child.node.kind === "directory") : [];
    const words: unknown[] = [
      (typeBits[node.kind] | mode).toString(8),
      uid,
      gid,
      mtimeNs,
      node.kind === "directory" ? 2 + subdirectories.length : group.length,
      [...xattrs].map(([name, value]) => `${name}=${value.toString("hex")}`).sort(),
    ];
    if (node.kind === "file") words.push(node.sizeBytes, digestOf(node, order.get(node) ?? -1));
    if (node.kind === "symlink") words.push(node.target);
    if (node.kind === "char" || node.kind === "block") words.push(makeDevice(node.deviceMajor, node.deviceMinor));
    // Names of one node are told by the first of them.
    for (const path of group) told[path] = `${words.join(" ")} ${group.length} as ${group[0]}`;
  }
  return told;
}

export function seenPaths(seen: ReadonlyMap<string, Seen>): Record<string, string> {
  const groups = new Map<string, string[]>();
  for (const path of [...seen.keys()].sort()) {
    const inode = seen.get(path)?.inode ?? "";
    const group = groups.get(inode);
    if (group === undefined) groups.set(inode, [path]);
    else group.push(path);
  }
  const told: Record<string, string> = {};
  for (const [path, at] of seen) {
    const type = at.mode & 0o170000;
    const words: unknown[] = [
      at.mode.toString(8),
      at.uid,
      at.gid,
      at.mtimeNs,
      at.linkCount,
      Object.entries(at.xattrs)
        .map(([name, value]) => `${name}=${value}`)
        .sort(),
    ];
    if (type === typeBits.file) words.push(at.sizeBytes, at.digest);
    if (type === typeBits.symlink) words.push(at.target);
    if (at.device !== "") words.push(at.device);
    const group = groups.get(at.inode) ?? [];
    told[path] = `${words.join(" ")} ${group.length} as ${group[0]}`;
  }
  return told;
}

function digestOf(file: ErofsFile, index: number): string {
  if (file.sizeBytes > 2 ** 30) return ""; // as walk.ts does
  const supplied = contentOf(index, contentBytesOf(file));
  if (file.data === undefined) return createHash("sha256").update(supplied).digest("hex");
  const whole = Buffer.alloc(file.sizeBytes);
  let from = 0;
  for (const { offset, length } of file.data) {
    supplied.copy(whole, offset, from, from + length);
    from += length;
  }
  return createHash("sha256").update(whole).digest("hex");
}

/** glibc's makedev. */
function makeDevice(major: number, minor: number): number {
  return (minor & 0xff) + ((major & 0xfff) << 8) + Math.floor(minor / 256) * 2 ** 20;
}
