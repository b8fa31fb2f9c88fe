import { type ByteString, printable } from "../byte-string.ts";
import { InvalidInput } from "../invalid-input.ts";
import { noXattrs, type TarEntry } from "../tar/tar-entry.ts";
import { bytesPerRange, checkBytes, checkCount, type ImageLimits } from "./limits.ts";
import type { StoredData } from "./stored-data.ts";
import { type DirectoryNode, type FileNode, type Metadata, type TreeNode, walk } from "./tree.ts";
import { xattrBytes } from "./xattrs.ts";

/*
 * Applies layers to one tree in memory by the rules of the OCI image specification ("Applying Changesets"):
 *   a name of a later layer replaces the same name of an earlier one; two directories become one with the later metadata;
 *   `.wh.<name>` removes a name, `.wh..wh..opq` all names, that earlier layers put there: names of the same layer stay,
 *   whatever the order in the archive.
 * A path through a symbolic link is resolved inside the tree, as Docker and containerd do: images made outside a
 * container engine rely on it (`lib/x` where lib is a link to usr/lib).
 */

const whiteoutPrefix = ".wh.";
const whiteoutMetaPrefix = ".wh..wh.";
const opaqueWhiteout = ".wh..wh..opq";
const maxNameBytes = 255;
const slash = 0x2f;
const dot = 0x2e;
const maxTargetBytes = 4095;
/** What a directory is given that no entry describes. */
const impliedDirectory: Metadata = { mode: 0o755, uid: 0, gid: 0, mtimeNs: 0n, xattrs: noXattrs };

export interface MergedTree {
  readonly root: DirectoryNode;
  /** All files that the layers had, by layer and place in it; those that are not in the tree any more among them. */
  readonly files: readonly FileNode[];
}

export class LayerMerger {
  readonly #limits: ImageLimits;
  readonly #root: DirectoryNode = {
    kind: "directory",
    metadata: impliedDirectory,
    children: new Map(),
    clearedBy: 0,
  };
  readonly #files: FileNode[] = [];
  #layer = -1;
  #nodes = 0;
  #metadataBytes = 0;
  #lastMetadata: Metadata = impliedDirectory;
  /**
   * The directory that the last entry was put into, or that it was: the next one mostly lies in it. Its path is as written, of `depth`
   * components, and leads to it until a whiteout comes or a directory or link is replaced.
   */
  #last: { readonly path: ByteString; readonly depth: number; readonly directory: DirectoryNode } | undefined;

  constructor(limits: ImageLimits) {
    this.#limits = limits;
  }

  /** Entries added from now on belong to the next layer up. */
  nextLayer(): void {
    this.#layer++;
    this.#last = undefined;
  }

  /**
   * Applies one entry of the current layer. Throws InvalidInput when it contradicts the tree, IMAGE_TOO_LARGE over a limit.
   */
  add(entry: TarEntry, stored: StoredData): void {
    this.#count(entry.name.length);
    const last = this.#last;
    const near = last === undefined ? undefined : this.#nameIn(last, entry.name);
    if (last !== undefined && near !== undefined) {
      this.#place(entry, stored, last.directory, near);
      return;
    }
    const components = this.#components(entry.name);
    const name = components.pop();
    if (name === undefined) {
      if (entry.type !== "directory") throw new InvalidInput("the root of the tree is not a directory");
      this.#root.metadata = this.#metadata(entry);
      return;
    }
    const through = components.find((component) => component.startsWith(whiteoutPrefix));
    if (through !== undefined) throw new InvalidInput(`${printable(entry.name)} lies below a whiteout`);
    if (name.startsWith(whiteoutPrefix)) {
      this.#last = undefined;
      this.#whiteout(entry.name, components, name);
      return;
    }
    const depth = components.length;
    const directory = this.#parent(entry.name, components);
    this.#place(entry, stored, directory, name);
    const placed = directory.children.get(name)?.node;
    if (placed?.kind === "directory" && entry.name.endsWith(`${name}/`)) {
      this.#last = { path: entry.name.slice(0, -1), depth: depth + 1, directory: placed };
    } else if (entry.name.endsWith(`/${name}`)) {
      this.#last = { path: entry.name.slice(0, -1 - name.length), depth, directory };
    }
  }

  /** The name of an entry that lies right in a directory; undefined for what takes a closer look. */
  #nameIn(at: { readonly path: ByteString; readonly depth: number }, path: ByteString): ByteString | undefined {
    const start = at.path.length + 1;
    if (path.charCodeAt(start - 1) !== slash || path.charCodeAt(start) === dot || !path.startsWith(at.path))
      return undefined;
    const bytes = path.length - start;
    if (bytes < 1 || bytes > maxNameBytes || path.includes("/", start)) return undefined;
    if (path.length > this.#limits.pathBytes || at.depth >= this.#limits.depth) return undefined;
    return path.slice(start);
  }

  /** Puts a node under a name. What was a part of paths there may not be so any more. */
  #set(parent: DirectoryNode, name: ByteString, node: TreeNode): void {
    const replaced = parent.children.get(name)?.node.kind;
    if (replaced === "directory" || replaced === "symlink") this.#last = undefined;
    parent.children.set(name, { node, layer: this.#layer });
  }

  finish(): MergedTree {
    return { root: this.#root, files: this.#files };
  }

  #place(entry: TarEntry, stored: StoredData, parent: DirectoryNode, name: ByteString): void {
    if (entry.type === "hardlink") {
      const node = this.#linkTarget(entry, parent, name);
      this.#set(parent, name, node);
      return;
    }
    const existing = parent.children.get(name);
    const metadata = this.#metadata(entry);
    if (entry.type === "directory" && existing?.node.kind === "directory") {
      existing.node.metadata = metadata;
      existing.layer = this.#layer;
      return;
    }
    this.#set(parent, name, this.#node(entry, stored, metadata));
  }

  #node(entry: TarEntry, stored: StoredData, metadata: Metadata): TreeNode {
    switch (entry.type) {
      case "directory":
        return { kind: "directory", metadata, children: new Map(), clearedBy: this.#layer };
      case "symlink":
        if (entry.linkName === "") throw new InvalidInput(`the symbolic link ${printable(entry.name)} has no target`);
        if (entry.linkName.length > maxTargetBytes) {
          throw new InvalidInput(
            `the symbolic link ${printable(entry.name)} has a target of over ${maxTargetBytes} bytes`,
          );
        }
        this.#addMetadataBytes(entry.linkName.length);
        // Linux gives a link no mode of its own and shows this one.
        return { kind: "symlink", metadata: { ...metadata, mode: 0o777 }, target: entry.linkName };
      case "char":
      case "block":
      case "fifo": {
        const { deviceMajor, deviceMinor } = entry;
        if (deviceMajor < 0 || deviceMajor > 0xfff || deviceMinor < 0 || deviceMinor > 0xfffff) {
          throw new InvalidInput(`the device ${printable(entry.name)} has a number out of range`);
        }
        return { kind: entry.type, metadata, deviceMajor, deviceMinor };
      }
      default: {
        const { sizeBytes, data } = entry;
        const whole: FileNode = { kind: "file", metadata, sizeBytes, layer: this.#layer, stored, place: undefined };
        const file = data === undefined ? whole : { ...whole, data };
        this.#files.push(file);
        return file;
      }
    }
  }

  /** Names are checked before anything is made: no `..`, bounded length and depth. */
  #components(path: ByteString): ByteString[] {
    checkBytes("an entry's path is", path.length, this.#limits.pathBytes);
    const components = path.split("/").filter((component) => component !== "" && component !== ".");
    checkCount(() => `the depth of ${printable(path)} is`, components.length, this.#limits.depth);
    for (const component of components) {
      if (component === "..") throw new InvalidInput(`${printable(path)} points out of the tree`);
      if (component.length > maxNameBytes) {
        throw new InvalidInput(`${printable(path)} has a name of over ${maxNameBytes} bytes`);
      }
    }
    return components;
  }

  #parent(path: ByteString, components: readonly ByteString[]): DirectoryNode {
    const result = walk([this.#root], components, (parent, name, depth) => {
      checkCount(() => `the depth of ${printable(path)} is`, depth, this.#limits.depth);
      this.#count(name.length);
      const node: DirectoryNode = {
        kind: "directory",
        metadata: impliedDirectory,
        children: new Map(),
        clearedBy: this.#layer,
      };
      parent.children.set(name, { node, layer: this.#layer });
      return node;
    });
    if (result.outcome === "found") return result.directories.at(-1) ?? this.#root;
    throw walkFailure(path, result);
  }

  #linkTarget(entry: TarEntry, parent: DirectoryNode, name: ByteString): TreeNode {
    const what = `the hard link ${printable(entry.name)}`;
    const components = this.#components(entry.linkName);
    const targetName = components.pop();
    const result = walk([this.#root], components, () => undefined);
    if (result.outcome === "too-many-links" || result.outcome === "not-a-directory") {
      throw walkFailure(entry.linkName, result);
    }
    const directory = result.outcome === "found" ? result.directories.at(-1) : undefined;
    const node = targetName === undefined ? undefined : directory?.children.get(targetName)?.node;
    if (node === undefined)
      throw new InvalidInput(`${what} points to ${printable(entry.linkName)}, which is not there`);
    if (node.kind === "directory") throw new InvalidInput(`${what} points to a directory`);
    if (directory === parent && targetName === name) throw new InvalidInput(`${what} points to itself`);
    const replaced = parent.children.get(name)?.node;
    if (result.outcome === "found" && result.directories.some((passed) => passed === replaced)) {
      throw new InvalidInput(`${what} replaces the directory that it points into`);
    }
    return node;
  }

  #whiteout(path: ByteString, components: readonly ByteString[], name: ByteString): void {
    const hidden = name.slice(whiteoutPrefix.length);
    // Other names with the double prefix are bookkeeping of AUFS, which wrote the first layers of this form.
    if (name !== opaqueWhiteout && name.startsWith(whiteoutMetaPrefix)) return;
    if (hidden === "" || hidden === "." || hidden === "..") {
      throw new InvalidInput(`the whiteout ${printable(path)} names no entry of its directory`);
    }
    const result = walk([this.#root], components, () => undefined);
    if (result.outcome === "too-many-links") throw walkFailure(path, result);
    if (result.outcome !== "found") return; // there is nothing below to hide
    const directory = result.directories.at(-1) ?? this.#root;
    if (name === opaqueWhiteout) this.#clear(directory);
    else this.#hide(directory, hidden);
  }

  /** Removes `name` unless this layer put it there; of a directory, what earlier layers put below. */
  #hide(parent: DirectoryNode, name: ByteString): void {
    const child = parent.children.get(name);
    if (child === undefined) return;
    if (child.node.kind === "directory") {
      this.#clear(child.node);
      if (child.node.children.size > 0) return;
    }
    if (child.layer < this.#layer) parent.children.delete(name);
  }

  /** Each directory is cleared once a layer: later names in it are this layer's own, so repeating would find nothing. */
  #clear(directory: DirectoryNode): void {
    if (directory.clearedBy === this.#layer) return;
    directory.clearedBy = this.#layer;
    for (const name of directory.children.keys()) this.#hide(directory, name);
  }

  #metadata({ mode, uid, gid, mtimeNs, xattrs, data }: TarEntry): Metadata {
    this.#addMetadataBytes(xattrBytes(xattrs) + (data?.length ?? 0) * bytesPerRange);
    // Neighbours in an archive mostly share all of it: one object for them all.
    const last = this.#lastMetadata;
    const same = last.mode === mode && last.uid === uid && last.gid === gid && last.mtimeNs === mtimeNs;
    if (!same || xattrs.size > 0 || last.xattrs.size > 0) this.#lastMetadata = { mode, uid, gid, mtimeNs, xattrs };
    return this.#lastMetadata;
  }

  #count(pathBytes: number): void {
    checkCount("the image's entries are", ++this.#nodes, this.#limits.entries);
    this.#addMetadataBytes(pathBytes);
  }

  #addMetadataBytes(bytes: number): void {
    this.#metadataBytes += bytes;
    checkBytes("the image's names and attributes are", this.#metadataBytes, this.#limits.metadataBytes);
  }
}

function walkFailure(
  path: ByteString,
  result:
    | { readonly outcome: "missing" | "too-many-links" }
    | { readonly outcome: "not-a-directory"; readonly name: ByteString },
): InvalidInput {
  return result.outcome === "not-a-directory"
    ? new InvalidInput(`${printable(path)} goes through ${printable(result.name)}, which is not a directory`)
    : new InvalidInput(`${printable(path)} goes through too many symbolic links`);
}
