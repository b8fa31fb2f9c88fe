import { open } from "node:fs/promises";
import { join } from "node:path";
import { kib, ServiceError } from "@unkey/base";
import { blockBytes, type ErofsNewDevice, writeErofs } from "@unkey/erofs";
import { type ByteString, printable } from "../byte-string.ts";
import { type Digest, shortDigest } from "../digest.ts";
import { writeExt4 } from "../ext4/write-ext4.ts";
import { rethrowInvalid } from "../invalid-input.ts";
import { DamagedIndex, readIndex } from "../layer/layer-index.ts";
import { LayerMerger } from "../layer/layer-merger.ts";
import { checkBytes, checkCount, type ImageLimits } from "../layer/limits.ts";
import { type FileNode, findFile, storedBytes } from "../layer/tree.ts";
import { indexName } from "../layer/unpack-layer.ts";
import { LayerContents } from "./layer-contents.ts";
import { type Choice, planTree } from "./plan-tree.ts";
import type { TreePolicy } from "./tree-policy.ts";

/** A layer directory that `unpackLayer` has filled. */
export interface UnpackedLayer {
  readonly digest: Digest;
  readonly diffId: Digest;
  readonly directory: string;
}

export interface AssemblyOptions {
  readonly layerCount: number;
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
}

export interface WriteRootfsOptions {
  /**
   * For each layer, lowest first: set when its `content` is attached beside the image and not copied into it, to the SHA-256 of that
   * file in hexadecimal digits, as whoever stores it counts it meanwhile. They are the image's devices. Means nothing to ext4.
   */
  readonly devices: readonly (string | Promise<string> | undefined)[];
  /** Is replaced. */
  readonly imagePath: string;
  readonly format: "erofs" | "ext4";
  /** What the image is made from; the file system's UUID is derived from it. */
  readonly identity: string;
  readonly policy: TreePolicy;
  /** Chooses files to hand out. The caller bounds how many and how large. */
  readonly wanted?: Choice;
  /** Existing private directory for `ext4`; what is made in it is removed again. */
  readonly scratchDirectory: string;
  /** Called with the growing number of content bytes copied into the image and their known total. */
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
  /** Of the image itself, without its devices. */
  readonly sizeBytes: number;
  /** What `wanted` chose, by path. */
  readonly captured: ReadonlyMap<ByteString, Buffer>;
}

/** passwd and group files of real images are a few KiB. */
const maxAccountFileBytes = 512 * kib;

/**
 * Merges the layers of one image as they come, then writes their tree as one file; the same layers, devices, policy and identity give
 * the same bytes. EROFS needs no privilege and no tool.
 */
export class RootfsAssembly implements AsyncDisposable {
  readonly #options: AssemblyOptions;
  readonly #merger: LayerMerger;
  readonly #contents = new LayerContents();
  readonly #contentBytes: number[] = [];
  readonly #dropped = new Set<string>();

  /** Throws IMAGE_TOO_LARGE for more layers than the limits allow. */
  constructor(options: AssemblyOptions) {
    checkCount("the image's layers are", options.layerCount, options.limits.layers);
    this.#options = options;
    this.#merger = new LayerMerger(options.limits);
  }

  /** Applies the next layer up; its directory stays as it is until the end. Throws IMAGE_LAYER_INVALID, IMAGE_TOO_LARGE or LAYER_CACHE_DAMAGED. */
  async add({ digest, diffId, directory }: UnpackedLayer): Promise<void> {
    const { layerCount, signal } = this.#options;
    signal.throwIfAborted();
    const merger = this.#merger;
    merger.nextLayer();
    try {
      await using index = await open(join(directory, indexName));
      const tail = await readIndex(index, diffId, (entry, stored) => merger.add(entry, stored));
      const found = await this.#contents.open(directory);
      if (found.contentBytes !== tail.contentBytes || found.tailsBytes !== tail.tailsBytes) {
        throw new DamagedIndex("content or tails are not as long as the index says");
      }
      this.#contentBytes.push(tail.contentBytes);
      for (const name of tail.droppedXattrs) this.#dropped.add(printable(name).slice(1, -1));
    } catch (error) {
      const damage = error instanceof DamagedIndex ? error : await damageOf(directory, diffId);
      if (damage !== undefined) {
        const what = `the unpacked layer ${shortDigest(digest)} is damaged`;
        throw new ServiceError("LAYER_CACHE_DAMAGED", what, { cause: damage });
      }
      const at = `layer ${this.#contentBytes.length + 1} of ${layerCount} (${shortDigest(digest)})`;
      rethrowInvalid(error, "IMAGE_LAYER_INVALID", at);
    }
  }

  /** Writes what the layers added give; nothing can be added after. Throws IMAGE_TOO_LARGE, IMAGE_PRIVILEGED_FILE or ROOTFS_*. */
  async write(options: WriteRootfsOptions): Promise<AssembledRootfs> {
    const { limits, signal } = this.#options;
    const { policy, wanted, onBytes, imagePath, identity } = options;
    const contents = this.#contents;
    const merged = this.#merger.finish();
    const { root } = merged;
    const plan = planTree(merged, { limits, policy, wanted });
    const devices = options.format === "erofs" ? placeInDevices(options.devices, this.#contentBytes, plan.files) : [];

    const account = async (path: string): Promise<string> => {
      const file = findFile(root, path);
      if (file === undefined) return "";
      checkBytes(`the image's ${path} is`, file.sizeBytes, maxAccountFileBytes);
      return (await contents.read(file)).toString("utf8");
    };
    const passwd = await account("/etc/passwd");
    const group = await account("/etc/group");

    const copiedBytes = plan.files.reduce((sum, file) => sum + bytesToCopy(file), 0);
    async function* content(): AsyncGenerator<Buffer> {
      let bytes = 0;
      for await (const chunk of contents.stream(plan.files, signal)) {
        yield chunk;
        bytes += chunk.length;
        onBytes?.(bytes, copiedBytes);
      }
    }
    const tree = { root, files: plan.files, content: content(), imagePath, identity, signal };
    const image =
      options.format === "ext4"
        ? await writeExt4({ ...tree, scratchDirectory: options.scratchDirectory })
        : await writeErofs({ ...tree, devices });

    const captured = new Map<ByteString, Buffer>();
    for (const [path, file] of plan.wanted) captured.set(path, await contents.read(file));
    return { passwd, group, droppedXattrs: [...this.#dropped].sort(), captured, sizeBytes: image.sizeBytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#contents[Symbol.asyncDispose]();
  }
}

/** Gives each file that has blocks in a device its place there. */
function placeInDevices(
  digests: WriteRootfsOptions["devices"],
  contentBytes: readonly number[],
  files: readonly FileNode[],
): ErofsNewDevice[] {
  const devices: ErofsNewDevice[] = [];
  const deviceOf = digests.map((digest, layer) => {
    if (digest === undefined) return undefined;
    return devices.push({ digest, blockCount: (contentBytes[layer] ?? 0) / blockBytes }) - 1;
  });
  for (const file of files) {
    const device = deviceOf[file.layer];
    const { contentOffset, contentBytes: bytes } = file.stored;
    if (device !== undefined && bytes > 0) file.place = { device, block: contentOffset / blockBytes };
  }
  return devices;
}

function bytesToCopy(file: FileNode): number {
  return storedBytes(file) - (file.place === undefined ? 0 : file.stored.contentBytes);
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
