import type { PackageList } from "./package-list.ts";

/**
 * Finds the packages of one tree: `wants` chooses the files while the tree is walked, `list` reads them. Both are bounded
 * whatever the tree holds; a file beyond a bound is listed as unread. Paths are byte strings (one character per byte) from the
 * root, with or without a leading slash.
 */
export class PackageScan {
  /** True when the file's content is to be handed to `list`. The same path again gives the same answer. */
  wants(_path: string, _sizeBytes: number): boolean {
    throw new Error("not written yet");
  }

  /** Reads the files that were wanted. Never throws for what a file contains. */
  list(_files: ReadonlyMap<string, Buffer>): PackageList {
    throw new Error("not written yet");
  }
}
