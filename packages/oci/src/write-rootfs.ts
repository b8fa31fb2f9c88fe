import { rm } from "node:fs/promises";
import { join } from "node:path";
import { kib } from "@unkey/base";
import { makeErofs } from "./erofs.ts";
import type { LayerBlob } from "./layer/layer-stream.ts";
import { checkBytes, type ImageLimits } from "./layer/limits.ts";
import { mergeLayers } from "./layer/merge-layers.ts";
import { type FileNode, findFile } from "./layer/tree.ts";
import { planTree, treeArchive } from "./layer/tree-archive.ts";
import { unpackTree } from "./layer/unpack-tree.ts";
import { isInstalled } from "./run-tool.ts";

export interface WriteRootfsOptions {
  /** Lowest first. */
  readonly layers: readonly LayerBlob[];
  /** Existing private directory; what is made in it is removed again. */
  readonly scratchDirectory: string;
  readonly imagePath: string;
  /** See `ErofsOptions.identity`. */
  readonly identity: string;
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
  /** Called with the growing number of content bytes unpacked and their known total. */
  readonly onBytes?: (doneBytes: number, totalBytes: number) => void;
  /** Called between unpacking the tree and writing the image. */
  readonly onWriting?: () => Promise<void>;
}

export interface RootfsFacts {
  /** Text of the tree's account files; empty where the image has none. */
  readonly passwd: string;
  readonly group: string;
  /** Attribute names that were left out. */
  readonly droppedXattrs: readonly string[];
}

/** passwd and group files of real images are a few KiB. */
const maxAccountFileBytes = 512 * kib;

/** What this host lacks to write a root filesystem, as a sentence each: for health reports. Empty when it can. */
export async function rootfsObstacles(): Promise<string[]> {
  const obstacles: string[] = [];
  if (process.getuid?.() !== 0) obstacles.push("needs root to set owners and make devices");
  for (const [command, debianPackage] of [
    ["mkfs.erofs", "erofs-utils"],
    ["tar", "tar"],
  ] as const) {
    if (!(await isInstalled(command))) obstacles.push(`${command} is missing: install ${debianPackage}`);
  }
  return obstacles;
}

/** Turns layers into an EROFS image; the same layers and identity give the same bytes. Root only. */
export async function writeRootfs(options: WriteRootfsOptions): Promise<RootfsFacts> {
  const { layers, limits, signal, onBytes, onWriting } = options;
  const tree = await mergeLayers(layers, { limits, signal });
  const plan = planTree(tree, layers.length, limits);
  checkBytes("the image's files are", plan.contentBytes, limits.uncompressedBytes);

  const captured = new Map<FileNode, Buffer[]>();
  for (const path of ["/etc/passwd", "/etc/group"]) {
    const file = findFile(tree.root, path);
    if (file === undefined) continue;
    checkBytes(`the image's ${path} is`, file.sizeBytes, maxAccountFileBytes);
    captured.set(file, []);
  }
  const text = (path: string): string => {
    const file = findFile(tree.root, path);
    return file === undefined ? "" : Buffer.concat(captured.get(file) ?? []).toString("utf8");
  };

  const rootName = "rootfs";
  const directory = join(options.scratchDirectory, rootName);
  try {
    const archive = treeArchive(plan, layers, {
      rootName,
      limits,
      signal,
      onBytes: (bytes) => onBytes?.(bytes, plan.contentBytes),
      observe: new Map([...captured].map(([file, chunks]) => [file, (chunk) => chunks.push(Buffer.from(chunk))])),
    });
    await unpackTree(archive, options.scratchDirectory, signal);
    await onWriting?.();
    await makeErofs({
      sourceDirectory: directory,
      imagePath: options.imagePath,
      identity: options.identity,
      newestMtimeNs: plan.newestMtimeNs,
      signal,
    });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
  return { passwd: text("/etc/passwd"), group: text("/etc/group"), droppedXattrs: tree.droppedXattrs };
}
