import { readdirSync, readFileSync } from "node:fs";

const intervalMs = 50;

/**
 * Resident memory of a process and everything that it started, watched until disposed. They run the same program, so pages of
 * files count once, as many as the process with most of them has.
 */
export class MemoryWatch implements Disposable {
  /** The largest sum seen, and what it was made of. */
  peakBytes = 0;
  peakParts: readonly string[] = [];
  readonly #timer: NodeJS.Timeout;

  constructor(root: number) {
    this.#timer = setInterval(() => this.#look(root), intervalMs);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }

  #look(root: number): void {
    const parts = descendants(root).map((pid) => ({ pid, ...residentBytes(pid) }));
    const bytes = parts.reduce((sum, part) => sum + part.own, 0) + Math.max(...parts.map((part) => part.files));
    if (bytes <= this.peakBytes) return;
    this.peakBytes = bytes;
    this.peakParts = parts.map(
      ({ pid, own, files }) => `${pid === root ? "daemon" : "worker"} ${inMib(own)} + ${inMib(files)} MiB`,
    );
  }
}

function inMib(bytes: number): number {
  return Math.round(bytes / 2 ** 20);
}

function descendants(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const parent = Number(/\) \S (\d+)/.exec(readProc(`${name}/stat`))?.[1]);
    children.set(parent, [...(children.get(parent) ?? []), Number(name)]);
  }
  const found = [root];
  for (const pid of found) found.push(...(children.get(pid) ?? []));
  return found;
}

/** What is the process's own, and what it maps of files. */
function residentBytes(pid: number): { own: number; files: number } {
  const status = readProc(`${pid}/status`);
  const bytesOf = (field: string): number =>
    1024 * Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(status)?.[1] ?? 0);
  return { own: bytesOf("RssAnon") + bytesOf("RssShmem"), files: bytesOf("RssFile") };
}

/** Empty when the process has ended meanwhile. */
function readProc(path: string): string {
  try {
    return readFileSync(`/proc/${path}`, "utf8");
  } catch {
    return "";
  }
}
