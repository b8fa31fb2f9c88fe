import type { ByteString } from "../byte-string.ts";
import type { DirectoryNode, TreeNode } from "../layer/tree.ts";

/**
 * Visits every name of a tree but the root's, in the order of paths sorted component by component. `directory` is the
 * path of the directory that has the name, empty for the root.
 */
export function visitTree(
  root: DirectoryNode,
  visit: (directory: ByteString, name: ByteString, node: TreeNode) => void,
): void {
  const open = [visitOf("", root)];
  for (let at = open.at(-1); at !== undefined; at = open.at(-1)) {
    const name = at.names[at.next++];
    if (name === undefined) {
      open.pop();
      continue;
    }
    const node = at.children.get(name)?.node;
    if (node === undefined) continue;
    visit(at.path, name, node);
    if (node.kind === "directory") open.push(visitOf(pathOf(at.path, name), node));
  }
}

/** A directory whose names before `next` have been visited. */
function visitOf(path: ByteString, { children }: DirectoryNode) {
  return { path, children, names: [...children.keys()].sort(), next: 0 };
}

/** Without a leading slash. */
export function pathOf(directory: ByteString, name: ByteString): ByteString {
  return directory === "" ? name : `${directory}/${name}`;
}
