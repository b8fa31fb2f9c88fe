import { lstat, readdir, statfs } from "node:fs/promises";
import { join } from "node:path";

export interface UsageLimits {
  /** Blocks on disk, of all files together. */
  readonly bytes: number;
  readonly files: number;
  /** What the file system keeps free, whoever fills it. */
  readonly reserveBytes: number;
}

/** Too much in the directory, or too little left beside it: a process may hold files that have no name any more. */
export type Excess = "directory" | "disk";

const intervalMs = 200;
const maxDepth = 8;
const blockBytes = 512; // the unit of st_blocks, whatever the file system's own (stat(2))

/**
 * Looks at what lies in `directory` again and again, and calls `onOver` once when that is over a limit or the disk is almost full. A process writes on for
 * at most one interval; no file of its own grows beyond its RLIMIT_FSIZE meanwhile.
 */
export function watchUsage(directory: string, limits: UsageLimits, onOver: (excess: Excess) => void): Disposable {
  let timer: NodeJS.Timeout | undefined;
  let ended = false;
  const look = async (): Promise<void> => {
    const excess = await excessOf(directory, limits).catch(() => undefined); // removed while it was looked at
    if (ended) return;
    if (excess !== undefined) return onOver(excess);
    timer = setTimeout(() => void look(), intervalMs);
  };
  timer = setTimeout(() => void look(), intervalMs);
  return {
    [Symbol.dispose]: () => {
      ended = true;
      clearTimeout(timer);
    },
  };
}

async function excessOf(directory: string, limits: UsageLimits): Promise<Excess | undefined> {
  const { bavail, bsize } = await statfs(directory);
  if (bavail * bsize < limits.reserveBytes) return "disk";
  return (await isOver(directory, limits)) ? "directory" : undefined;
}

async function isOver(root: string, limits: UsageLimits): Promise<boolean> {
  let bytes = 0;
  let files = 0;
  const counted = new Set<number>();
  const waiting = [{ path: root, depth: 0 }];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { path, depth } = next;
    if (depth > maxDepth) return true;
    for (const entry of await readdir(path, { withFileTypes: true })) {
      if (++files > limits.files) return true;
      const inner = join(path, entry.name);
      const { blocks, ino } = await lstat(inner);
      if (!counted.has(ino)) bytes += blocks * blockBytes; // a file may have several names
      counted.add(ino);
      if (bytes > limits.bytes) return true;
      if (entry.isDirectory()) waiting.push({ path: inner, depth: depth + 1 });
    }
  }
  return false;
}
