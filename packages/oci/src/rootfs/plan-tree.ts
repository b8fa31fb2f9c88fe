import type { ByteString } from "../byte-string.ts";
import type { MergedTree } from "../layer/layer-merger.ts";
import { checkBytes, type ImageLimits } from "../layer/limits.ts";
import type { FileNode } from "../layer/tree.ts";
import { PolicyCheck, type TreePolicy } from "./tree-policy.ts";
import { pathOf, visitTree } from "./visit-tree.ts";

function pathBytes(directory: ByteString, name: ByteString): number {
  return directory === "" ? name.length : directory.length + 1 + name.length;
}

export interface Plan {
  /** Each file once, by layer and place in it: the order in which content is met. */
  readonly files: readonly FileNode[];
  /** Files that `wanted` chose, by each of the names that it chose. */
  readonly wanted: ReadonlyMap<ByteString, FileNode>;
}

/** Chooses files by the path of their directory (empty for the root), their name in it and their size. */
export type Choice = (directory: ByteString, name: ByteString, sizeBytes: number) => boolean;

/**
 * Applies the policy to a merged tree and finds its files. The same tree gives the same plan. Throws IMAGE_TOO_LARGE or
 * IMAGE_PRIVILEGED_FILE.
 */
export function planTree(
  { root, files }: MergedTree,
  options: { readonly limits: ImageLimits; readonly policy: TreePolicy; readonly wanted?: Choice | undefined },
): Plan {
  const { limits, policy, wanted } = options;
  const check = new PolicyCheck(policy);
  const found = new Set<FileNode>();
  const chosen = new Map<ByteString, FileNode>();
  let apparentBytes = 0;
  visitTree(root, (directory, name, node) => {
    checkBytes("a path of the image is", pathBytes(directory, name), limits.pathBytes);
    if (node.kind !== "file") return;
    if (wanted?.(directory, name, node.sizeBytes) === true) chosen.set(pathOf(directory, name), node);
    if (found.has(node)) return;
    found.add(node);
    check.add(directory, name, node);
    apparentBytes += node.sizeBytes;
  });
  check.finish();
  // With their holes: an image of nothing but holes has addresses to store for them.
  checkBytes("the image's files are", apparentBytes, limits.uncompressedBytes);
  return { files: files.filter((file) => found.has(file)), wanted: chosen };
}
