import { access, mkdir, readdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { isErrno } from "@unkey/base";
import { type CgroupLayout, detectCgroups, type Hierarchy } from "./cgroup-layout.ts";

export interface CgroupLimits {
  /** Processors that the group may use at once; fractions are fine. */
  readonly cpuCount: number;
  readonly memoryBytes: number;
  /** Processes and threads. */
  readonly maxProcesses: number;
}

/** Files that a group's use of processor and memory is read from. */
export interface CounterFiles {
  readonly cpu: { readonly path: string; readonly format: "cpu.stat" | "cpuacct.usage" };
  readonly memory: string;
}

const removalDeadlineMs = 5_000;
const removalPollMs = 10;
const exitDeadlineMs = 2_000;
const exitPollMs = 2;

/**
 * Groups of processes under one parent, `<parent>/<name>` in each hierarchy that the host offers (cgroup v2, or v1 where v2
 * lacks controllers). Every verb may be repeated.
 */
export class LinuxCgroups {
  readonly active: boolean;
  readonly detail: string;
  readonly #layout: CgroupLayout | undefined;
  readonly #parent: string;

  private constructor(layout: CgroupLayout | string, parent: string) {
    this.#layout = typeof layout === "string" ? undefined : layout;
    this.active = typeof layout !== "string";
    this.detail = typeof layout === "string" ? layout : layout.detail;
    this.#parent = parent;
  }

  /** Works without cgroups too, and then says so in `detail`: processes run unlimited and are not counted. */
  static async open(parent: string): Promise<LinuxCgroups> {
    const layout = await detectCgroups();
    if (typeof layout === "string") return new LinuxCgroups(layout, parent);
    const cgroups = new LinuxCgroups(layout, parent);
    try {
      for (const hierarchy of layout.hierarchies) await makeParent(hierarchy, parent);
    } catch (error) {
      return new LinuxCgroups(`the host refuses to hand out cgroups: ${(error as Error).message}`, parent);
    }
    return cgroups;
  }

  async ensure(name: string, limits: CgroupLimits): Promise<void> {
    for (const hierarchy of this.#layout?.hierarchies ?? []) {
      const { root, settings } = hierarchy;
      await makeParent(hierarchy, this.#parent); // `close` may have removed it
      const dir = `${root}/${this.#parent}/${name}`;
      await mkdir(dir, { recursive: true });
      for (const [file, value] of settings(limits)) await writeFile(`${dir}/${file}`, value);
    }
  }

  procsPaths(name: string): string[] {
    return this.#dirs(name).map((dir) => `${dir}/cgroup.procs`);
  }

  counterFiles(name: string): CounterFiles | undefined {
    return this.#layout?.counterFiles(`${this.#parent}/${name}`);
  }

  async emptied(name: string): Promise<boolean> {
    for (let waitedMs = 0; waitedMs < exitDeadlineMs; waitedMs += exitPollMs) {
      if ((await this.processes(name)).length === 0) return true;
      await delay(exitPollMs);
    }
    return false;
  }

  /** Ends every process of the group and waits for that; throws when one outlives it. The group takes no more until `ensure`. */
  async kill(name: string): Promise<void> {
    // With no room left nothing forks away from the signals below.
    for (const dir of this.#dirs(name)) await writeExisting(`${dir}/pids.max`, "0");
    for (let waitedMs = 0; waitedMs < removalDeadlineMs; waitedMs += exitPollMs) {
      const pids = await this.processes(name);
      if (pids.length === 0) return;
      for (const pid of pids) signalKill(pid);
      await delay(exitPollMs);
    }
    throw new Error(`processes of the cgroup ${name} outlive SIGKILL`);
  }

  /** True when the kernel has killed a process of the group because the group was out of memory. */
  async outOfMemory(name: string): Promise<boolean> {
    // v2 and v1 name the same line (cgroup-v2.rst "memory.events"; v1 memory.rst "oom_control", kernel 4.13).
    const files = this.#dirs(name).flatMap((dir) => [`${dir}/memory.events`, `${dir}/memory.oom_control`]);
    const texts = await Promise.all(files.map((file) => readFile(file, "utf8").catch(() => "")));
    return texts.some((text) => /^oom_kill [1-9]/m.test(text));
  }

  async remove(name: string): Promise<void> {
    for (const dir of this.#dirs(name)) await removeWhenEmpty(dir);
  }

  async present(): Promise<string[]> {
    const found = new Set<string>();
    for (const { root } of this.#layout?.hierarchies ?? []) {
      const entries = await readdir(`${root}/${this.#parent}`, { withFileTypes: true }).catch(() => []);
      for (const entry of entries) if (entry.isDirectory()) found.add(entry.name);
    }
    return [...found];
  }

  async processes(name: string): Promise<number[]> {
    const pids = new Set<number>();
    for (const dir of this.#dirs(name)) {
      const text = await readFile(`${dir}/cgroup.procs`, "utf8").catch(() => "");
      for (const line of text.split("\n")) if (line !== "" && line !== "0") pids.add(Number(line));
    }
    return [...pids];
  }

  /** Removes the parent groups when nothing is left in them; `ensure` makes them anew. Not while it runs. */
  async close(): Promise<void> {
    for (const { root } of this.#layout?.hierarchies ?? [])
      await rmdir(`${root}/${this.#parent}`).catch(() => undefined);
  }

  #dirs(name: string): string[] {
    return (this.#layout?.hierarchies ?? []).map(({ root }) => `${root}/${this.#parent}/${name}`);
  }
}

async function makeParent({ root, delegate }: Hierarchy, parent: string): Promise<void> {
  if (delegate) await writeFile(`${root}/cgroup.subtree_control`, delegate);
  await mkdir(`${root}/${parent}`, { recursive: true });
  if (delegate) await writeFile(`${root}/${parent}/cgroup.subtree_control`, delegate);
}

async function writeExisting(path: string, value: string): Promise<void> {
  try {
    await access(path);
    await writeFile(path, value);
  } catch (error) {
    if (!isErrno(error, "ENOENT", "ENODEV")) throw error;
  }
}

function signalKill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch (error) {
    if (!isErrno(error, "ESRCH")) throw error;
  }
}

/** The kernel refuses to remove a group while an exiting process is still in it. */
async function removeWhenEmpty(dir: string): Promise<void> {
  for (let waitedMs = 0; ; waitedMs += removalPollMs) {
    try {
      await rmdir(dir);
      return;
    } catch (error) {
      if (isErrno(error, "ENOENT")) return;
      if (!isErrno(error, "EBUSY") || waitedMs >= removalDeadlineMs) throw error;
      await delay(removalPollMs);
    }
  }
}
