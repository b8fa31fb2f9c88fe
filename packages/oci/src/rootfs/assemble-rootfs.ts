import { open } from "node:fs/promises";
import { join } from "node:path";
import { kib, ServiceError } from "@unkey/base";
import { writeErofs } from "@unkey/erofs";
import { type ByteString, printable } from "../byte-string.ts";
import { type Digest, shortDigest } from "../digest.ts";
import { writeExt4 } from "../ext4/write-ext4.ts";
import { rethrowInvalid } from "../invalid-input.ts";
import { DamagedIndex, readIndex } from "../layer/layer-index.ts";
import { LayerMerger } from "../layer/layer-merger.ts";
import { checkBytes, checkCount, type ImageLimits } from "../layer/limits.ts";
import { type DirectoryNode, findFile } from "../layer/tree.ts";
import { indexName } from "../layer/unpack-layer.ts";
import { LayerContents } from "./layer-contents.ts";
import { planTree } from "./plan-tree.ts";
import type { TreePolicy } from "./tree-policy.ts";

/** A layer directory that `unpackLayer` has filled. */
export interface UnpackedLayer {
  readonly digest: Digest;
  readonly diffId: Digest;
  readonly directory: string;
}

export interface AssembleRootfsOptions {
  /** Lowest first. */
  readonly layers: readonly UnpackedLayer[];
  /** Is replaced. */
  readonly imagePath: string;
  readonly format: "erofs" | "ext4";
  /** What the image is made from; the file system's UUID is derived from it. */
  readonly identity: string;
  readonly limits: ImageLimits;
  readonly policy: TreePolicy;
  /** Chooses files to hand out, by path (bytes, no leading slash) and size. The caller bounds how many and how large. */
  readonly wanted?: (path: ByteString, sizeBytes: number) => boolean;
  /** Existing private directory for `ext4`; what is made in it is removed again. */
  readonly scratchDirectory: string;
  readonly signal: AbortSignal;
  /** Called with the growing number of content bytes written and their known total. */
  readonly onBytes?: (doneBytes: number, totalBytes: number) => void;
}

export interface RootfsFacts {
  /** Text of the tree's account files; empty where the image has none. */
  readonly passwd: string;
  readonly group: string;
  /** Attribute names that were left out, at most 16 of each layer. */
  readonly droppedXattrs: readonly string[];
}

export interface AssembledRootfs extends RootfsFacts {
  readonly sizeBytes: number;
  /** What `wanted` chose, by path. */
  readonly captured: ReadonlyMap<ByteString, Buffer>;
}

/** passwd and group files of real images are a few KiB. */
const maxAccountFileBytes = 512 * kib;

/**
 * Merges layers and writes their tree as one image; the same layers, policy and identity give the same bytes. EROFS needs no
 * privilege and no tool. Throws IMAGE_LAYER_INVALID, IMAGE_TOO_LARGE, IMAGE_PRIVILEGED_FILE, LAYER_CACHE_DAMAGED or ROOTFS_*.
 */
export async function assembleRootfs(options: AssembleRootfsOptions): Promise<AssembledRootfs> {
  const { layers, limits, policy, wanted, signal, onBytes, imagePath, identity } = options;
  await using contents = await LayerContents.open(layers.map(({ directory }) => directory));
  const { root, droppedXattrs } = await mergeLayers(layers, contents, limits, signal);
  const plan = planTree(root, { limits, policy, wanted });

  const account = async (path: string): Promise<string> => {
    const file = findFile(root, path);
    if (file === undefined) return "";
    checkBytes(`the image's ${path} is`, file.sizeBytes, maxAccountFileBytes);
    return (await contents.read(file)).toString("utf8");
  };
  const passwd = await account("/etc/passwd");
  const group = await account("/etc/group");

  async function* content(): AsyncGenerator<Buffer> {
    let bytes = 0;
    for await (const chunk of contents.stream(plan.files, signal)) {
      yield chunk;
      bytes += chunk.length;
      onBytes?.(bytes, plan.contentBytes);
    }
  }
  const tree = { root, files: plan.files, content: content(), imagePath, identity, signal };
  const image =
    options.format === "ext4"
      ? await writeExt4({ ...tree, scratchDirectory: options.scratchDirectory })
      : await writeErofs(tree);

  const captured = new Map<ByteString, Buffer>();
  for (const [path, file] of plan.wanted) captured.set(path, await contents.read(file));
  return { passwd, group, droppedXattrs, captured, sizeBytes: image.sizeBytes };
}

async function mergeLayers(
  layers: readonly UnpackedLayer[],
  contents: LayerContents,
  limits: ImageLimits,
  signal: AbortSignal,
): Promise<{ root: DirectoryNode; droppedXattrs: string[] }> {
  checkCount("the image's layers are", layers.length, limits.layers);
  const merger = new LayerMerger(limits);
  const dropped = new Set<string>();
  for (const [at, { digest, diffId, directory }] of layers.entries()) {
    signal.throwIfAborted();
    merger.nextLayer();
    try {
      await using index = await open(join(directory, indexName));
      const tail = await readIndex(index, diffId, (entry, contentOffset) => merger.add(entry, contentOffset));
      if ((await contents.sizeBytes(at)) !== tail.contentBytes) {
        throw new DamagedIndex("the content is not as long as the index says");
      }
      for (const name of tail.droppedXattrs) dropped.add(printable(name).slice(1, -1));
    } catch (error) {
      const damage = error instanceof DamagedIndex ? error : await damageOf(directory, diffId);
      if (damage !== undefined) {
        const what = `the unpacked layer ${shortDigest(digest)} is damaged`;
        throw new ServiceError("LAYER_CACHE_DAMAGED", what, { cause: damage });
      }
      rethrowInvalid(error, "IMAGE_LAYER_INVALID", `layer ${at + 1} of ${layers.length} (${shortDigest(digest)})`);
    }
  }
  return { root: merger.finish(), droppedXattrs: [...dropped].sort() };
}

/** What is wrong with an index: damage makes entries that no image has, and must not be told as the image's fault. */
async function damageOf(directory: string, diffId: Digest): Promise<DamagedIndex | undefined> {
  await using index = await open(join(directory, indexName));
  try {
    await readIndex(index, diffId, () => {});
    return undefined;
  } catch (error) {
    if (error instanceof DamagedIndex) return error;
    throw error;
  }
}
