import type { ByteString } from "../byte-string.ts";
import { checkBytes, type ImageLimits } from "../layer/limits.ts";
import type { DirectoryNode, FileNode, TreeNode } from "../layer/tree.ts";
import { PolicyCheck, type TreePolicy } from "./tree-policy.ts";

/** Visits every name of a tree but the root's, in the order of paths sorted component by component. */
export function visitTree(root: DirectoryNode, visit: (path: ByteString, node: TreeNode) => void): void {
  const pending: { path: ByteString; node: TreeNode }[] = [{ path: "", node: root }];
  for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
    if (at.path !== "") visit(at.path, at.node);
    if (at.node.kind !== "directory") continue;
    const { children } = at.node;
    const names = [...children.keys()].sort();
    for (let index = names.length - 1; index >= 0; index--) {
      const name = names[index] ?? "";
      const node = children.get(name)?.node;
      if (node !== undefined) pending.push({ path: at.path === "" ? name : `${at.path}/${name}`, node });
    }
  }
}

export interface Plan {
  /** Each file once, by layer and place in it: the order in which content is met. */
  readonly files: readonly FileNode[];
  /** Files that `wanted` chose, by each of the names that it chose. */
  readonly wanted: ReadonlyMap<ByteString, FileNode>;
}

/**
 * Applies the policy to a merged tree and finds its files. The same tree gives the same plan. Throws IMAGE_TOO_LARGE or
 * IMAGE_PRIVILEGED_FILE.
 */
export function planTree(
  root: DirectoryNode,
  options: {
    readonly limits: ImageLimits;
    readonly policy: TreePolicy;
    readonly wanted?: ((path: ByteString, sizeBytes: number) => boolean) | undefined;
  },
): Plan {
  const { limits, policy, wanted } = options;
  const check = new PolicyCheck(policy);
  const files = new Set<FileNode>();
  const chosen = new Map<ByteString, FileNode>();
  let apparentBytes = 0;
  visitTree(root, (path, node) => {
    checkBytes("a path of the image is", path.length, limits.pathBytes);
    if (node.kind !== "file") return;
    if (wanted?.(path, node.sizeBytes) === true) chosen.set(path, node);
    if (files.has(node)) return;
    files.add(node);
    check.add(path, node);
    apparentBytes += node.sizeBytes;
  });
  check.finish();
  // With their holes: an image of nothing but holes has addresses to store for them.
  checkBytes("the image's files are", apparentBytes, limits.uncompressedBytes);
  const ordered = [...files].sort((a, b) => a.layer - b.layer || storedOrder(a) - storedOrder(b));
  return { files: ordered, wanted: chosen };
}

/** Grows with each file of a layer that has data. */
function storedOrder({ stored }: FileNode): number {
  return stored.contentOffset + stored.tailsOffset;
}
