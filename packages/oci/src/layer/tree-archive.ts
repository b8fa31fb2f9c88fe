import type { ByteString } from "../byte-string.ts";
import { TarReader } from "../tar/tar-reader.ts";
import { tarEnd, tarHeader, tarPadding } from "../tar/tar-writer.ts";
import type { MergedTree } from "./layer-merger.ts";
import { type LayerBlob, layerStream } from "./layer-stream.ts";
import { checkBytes, type ImageLimits } from "./limits.ts";
import type { DirectoryNode, FileNode, SpecialNode, SymlinkNode, TreeNode } from "./tree.ts";

interface Placed<Node> {
  readonly path: ByteString;
  readonly node: Node;
}

/** A tree in the order in which it is written. */
interface Plan {
  /** Parents before children. */
  readonly directories: readonly Placed<DirectoryNode>[];
  /** By layer, then by the entry's ordinal in it: content is met in one pass over each layer. */
  readonly files: readonly ReadonlyMap<number, Placed<FileNode>>[];
  readonly specials: readonly Placed<SpecialNode | SymlinkNode>[];
  /** Further names of nodes above. */
  readonly hardLinks: readonly { readonly path: ByteString; readonly first: ByteString; readonly node: TreeNode }[];
  readonly newestMtimeNs: bigint;
  readonly contentBytes: number;
}

/** Lays a tree out in a fixed order: names sorted by their bytes. Throws IMAGE_TOO_LARGE when a path is too long. */
export function planTree(tree: MergedTree, layerCount: number, limits: ImageLimits): Plan {
  const directories: Placed<DirectoryNode>[] = [];
  const files = Array.from({ length: layerCount }, () => new Map<number, Placed<FileNode>>());
  const specials: Placed<SpecialNode | SymlinkNode>[] = [];
  const hardLinks: { path: ByteString; first: ByteString; node: TreeNode }[] = [];
  const firstPaths = new Map<TreeNode, ByteString>();
  let newestMtimeNs = 0n;
  let contentBytes = 0;
  const pending: Placed<DirectoryNode>[] = [{ path: "", node: tree.root }];
  for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
    directories.push(at);
    if (at.node.metadata.mtimeNs > newestMtimeNs) newestMtimeNs = at.node.metadata.mtimeNs;
    const below: Placed<DirectoryNode>[] = [];
    for (const name of [...at.node.children.keys()].sort()) {
      const node = at.node.children.get(name)?.node;
      if (node === undefined) continue;
      const path = at.path === "" ? name : `${at.path}/${name}`;
      checkBytes("a path of the image is", path.length, limits.pathBytes);
      if (node.kind === "directory") {
        below.push({ path, node });
        continue;
      }
      const first = firstPaths.get(node);
      if (first !== undefined) {
        hardLinks.push({ path, first, node });
        continue;
      }
      firstPaths.set(node, path);
      if (node.metadata.mtimeNs > newestMtimeNs) newestMtimeNs = node.metadata.mtimeNs;
      if (node.kind === "file") {
        files[node.layer]?.set(node.ordinal, { path, node });
        contentBytes += node.sizeBytes;
      } else {
        specials.push({ path, node });
      }
    }
    pending.push(...below.toReversed());
  }
  return { directories, files, specials, hardLinks, newestMtimeNs, contentBytes };
}

export interface TreeArchiveOptions {
  /** Name of the directory that the root becomes; every member's name starts with it. */
  readonly rootName: ByteString;
  readonly limits: ImageLimits;
  readonly signal: AbortSignal;
  /** Called with the growing number of content bytes written. */
  readonly onBytes?: (bytes: number) => void;
  /** Files whose content is wanted beside the archive, such as /etc/passwd; each receives its chunks. */
  readonly observe?: ReadonlyMap<FileNode, (chunk: Buffer) => void>;
}

/**
 * One tar archive of a merged tree: every name once, every parent a directory that comes before, no name through a link.
 * Reads each layer a second time for its content and holds none of it.
 */
export async function* treeArchive(
  plan: Plan,
  layers: readonly LayerBlob[],
  options: TreeArchiveOptions,
): AsyncGenerator<Buffer> {
  const name = (path: ByteString): ByteString => (path === "" ? options.rootName : `${options.rootName}/${path}`);
  for (const { path, node } of plan.directories) yield header(`${name(path)}/`, node);
  let contentBytes = 0;
  for (const [index, layer] of layers.entries()) {
    const wanted = new Map(plan.files[index]);
    if (wanted.size === 0) continue;
    const reader = new TarReader(layerStream(layer, options.limits, options.signal));
    try {
      while (wanted.size > 0) {
        const entry = await reader.next();
        if (entry === undefined) throw new Error("a layer changed between two readings");
        const file = wanted.get(entry.ordinal);
        if (file === undefined) continue;
        wanted.delete(entry.ordinal);
        const observer = options.observe?.get(file.node);
        yield header(name(file.path), file.node);
        for await (const chunk of reader.content()) {
          observer?.(chunk);
          contentBytes += chunk.length;
          yield chunk;
        }
        yield tarPadding(file.node.sizeBytes);
        options.onBytes?.(contentBytes);
      }
    } finally {
      await reader.close();
    }
  }
  for (const { path, node } of plan.specials) yield header(name(path), node);
  for (const { path, first, node } of plan.hardLinks) yield header(name(path), node, name(first));
  yield tarEnd();
}

function header(path: ByteString, node: TreeNode, hardLinkTo?: ByteString): Buffer {
  const special = node.kind === "char" || node.kind === "block";
  return tarHeader({
    ...node.metadata,
    type: hardLinkTo === undefined ? node.kind : "hardlink",
    name: path,
    linkName: hardLinkTo ?? (node.kind === "symlink" ? node.target : ""),
    sizeBytes: node.kind === "file" && hardLinkTo === undefined ? node.sizeBytes : 0,
    deviceMajor: special ? node.deviceMajor : 0,
    deviceMinor: special ? node.deviceMinor : 0,
    xattrs: hardLinkTo === undefined ? node.metadata.xattrs : new Map(),
  });
}
