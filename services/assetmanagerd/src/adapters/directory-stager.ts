import {
  closeSync,
  constants,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readlinkSync,
  realpathSync,
  type Stats,
  statSync,
} from "node:fs";
import { copyFile, link, rename, rm } from "node:fs/promises";
import { isAbsolute, join, relative, sep } from "node:path";
import { ServiceError } from "@unkey/base";
import type { Placement, Stager, StagingMethod } from "../ports.ts";
import { copySparse } from "./sparse-copy.ts";

const directoryFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/**
 * Stages into directories below the configured roots. The way from the root to the target is walked through open
 * directory handles without following a symbolic link, and files are placed through the last handle, so nobody can
 * swap a directory for a link between the check and the use.
 */
export class DirectoryStager implements Stager {
  readonly #roots: readonly string[];

  /** Roots may be reached through links, which their owner made, and may appear later. */
  constructor(roots: readonly string[]) {
    this.#roots = roots.map((root) => join(root));
  }

  async stage(targetDir: string, placements: readonly Placement[], signal: AbortSignal): Promise<StagingMethod[]> {
    const dir = this.#openTarget(targetDir);
    try {
      signal.throwIfAborted();
      const placed = placements.map((placement) =>
        place(`/proc/self/fd/${dir}`, placement).catch((cause: unknown) => {
          throw new ServiceError("STAGING_FAILED", `${placement.fileName} could not be staged`, { cause });
        }),
      );
      await Promise.allSettled(placed); // the directory stays open until the last one has ended
      // Not synced: a power failure that takes the names takes the VM too, and whoever boots it again stages again.
      return await Promise.all(placed);
    } finally {
      closeSync(dir);
    }
  }

  /** In this thread: it takes microseconds, and the way to another thread and back takes more. */
  #openTarget(targetDir: string): number {
    const root = this.#roots.find((candidate) => isBelow(candidate, targetDir));
    if (root === undefined) throw refused("lies below none of the staging roots");
    const way = relative(root, targetDir);
    let at: number | undefined;
    try {
      const realRoot = realRootOf(root);
      at = openSync(realRoot, directoryFlags);
      for (const name of way.split(sep)) {
        const next = openOrMake(`/proc/self/fd/${at}/${name}`);
        closeSync(at);
        at = next;
      }
      // The kernel's own word for where we are: nothing moved the walk elsewhere.
      if (readlinkSync(`/proc/self/fd/${at}`) !== join(realRoot, way)) throw refused("was moved while it was opened");
      return at;
    } catch (cause) {
      if (at !== undefined) closeSync(at);
      if (cause instanceof ServiceError) throw cause;
      const { code } = cause as NodeJS.ErrnoException;
      const link = code === "ELOOP" || code === "ENOTDIR";
      throw refused(link ? "is reached through something that is no directory" : "cannot be opened", cause);
    }
  }
}

function realRootOf(root: string): string {
  try {
    return realpathSync.native(root);
  } catch (cause) {
    throw refused("lies below a staging root that does not exist", cause);
  }
}

function openOrMake(path: string): number {
  try {
    return openSync(path, directoryFlags);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  return openSync(path, directoryFlags);
}

/** True for a normal absolute path strictly below `root`. */
function isBelow(root: string, path: string): boolean {
  if (!isAbsolute(path) || path !== join(path) || path.endsWith(sep)) return false;
  const way = relative(root, path);
  return way !== "" && way !== ".." && !way.startsWith(`..${sep}`) && !isAbsolute(way);
}

async function place(dir: string, { blobPath, fileName }: Placement): Promise<StagingMethod> {
  const path = `${dir}/${fileName}`;
  // The common case in one step: nothing lies there, and a link appears whole.
  try {
    linkSync(blobPath, path);
    return "hard_link";
  } catch {
    // Something lies there, or it must be done in another way.
  }
  const blob = statSync(blobPath);
  const present = lstatSync(path, { throwIfNoEntry: false });
  if (present !== undefined && sameFile(present, blob)) return "hard_link";
  // A new name that replaces the old in one step: whoever has the old file open keeps it.
  const temporary = `${dir}/.${fileName}.staging`;
  await rm(temporary, { force: true });
  try {
    const method = await linkOrCopy(blobPath, temporary);
    await rename(temporary, path);
    return method;
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

async function linkOrCopy(from: string, to: string): Promise<StagingMethod> {
  try {
    await link(from, to);
    return "hard_link";
  } catch (error) {
    // Another file system, or a blob with too many names already.
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "EXDEV" && code !== "EMLINK" && code !== "EPERM") throw error;
  }
  try {
    await copyFile(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE);
    return "reflink";
  } catch {
    await rm(to, { force: true });
    await copySparse(from, to);
    return "copy";
  }
}

function sameFile(a: Stats, b: Stats): boolean {
  return a.dev === b.dev && a.ino === b.ino;
}

function refused(why: string, cause?: unknown): ServiceError {
  return new ServiceError("STAGING_TARGET_REFUSED", `the target directory ${why}`, { cause });
}
