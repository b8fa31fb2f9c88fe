import { readdirSync, readFileSync } from "node:fs";

const intervalMs = 50;

/** Resident memory of a process and everything that it started, watched until disposed. */
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
    const parts = descendants(root).map((pid) => ({ pid, bytes: residentBytes(pid) }));
    const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
    if (bytes <= this.peakBytes) return;
    this.peakBytes = bytes;
    this.peakParts = parts.map(
      (part) => `${part.pid === root ? "daemon" : "worker"} ${Math.round(part.bytes / 2 ** 20)} MiB`,
    );
  }
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

function residentBytes(pid: number): number {
  return 1024 * Number(/^VmRSS:\s+(\d+) kB/m.exec(readProc(`${pid}/status`))?.[1] ?? 0);
}

/** Empty when the process has ended meanwhile. */
function readProc(path: string): string {
  try {
    return readFileSync(`/proc/${path}`, "utf8");
  } catch {
    return "";
  }
}
