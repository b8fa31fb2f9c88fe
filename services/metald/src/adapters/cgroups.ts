import { mkdir, readdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { CgroupLimits, Cgroups, CounterFiles } from "../ports.ts";
import { type CgroupLayout, detectCgroups } from "./cgroup-layout.ts";

const removalDeadlineMs = 5_000;
const removalPollMs = 10;
const exitDeadlineMs = 2_000;
const exitPollMs = 2;

/** One cgroup per VM, `unkey-<instance>/<vm id>` in each hierarchy that the host offers (cgroup v2, or v1 where v2 lacks controllers). */
export class LinuxCgroups implements Cgroups {
  readonly active: boolean;
  readonly detail: string;
  readonly #layout: CgroupLayout | undefined;
  readonly #parent: string;

  private constructor(layout: CgroupLayout | string, instanceId: string) {
    this.#layout = typeof layout === "string" ? undefined : layout;
    this.active = typeof layout !== "string";
    this.detail = typeof layout === "string" ? layout : layout.detail;
    this.#parent = `unkey-${instanceId}`;
  }

  /** Works without cgroups too, and then says so in `detail`: VMs run unlimited and their cpu and memory are not counted. */
  static async open(instanceId: string): Promise<LinuxCgroups> {
    const layout = await detectCgroups();
    if (typeof layout === "string") return new LinuxCgroups(layout, instanceId);
    const cgroups = new LinuxCgroups(layout, instanceId);
    try {
      for (const { root, delegate } of layout.hierarchies) {
        if (delegate) await writeFile(`${root}/cgroup.subtree_control`, delegate);
        await mkdir(`${root}/${cgroups.#parent}`, { recursive: true });
        if (delegate) await writeFile(`${root}/${cgroups.#parent}/cgroup.subtree_control`, delegate);
      }
    } catch (error) {
      return new LinuxCgroups(`the host refuses to hand out cgroups: ${(error as Error).message}`, instanceId);
    }
    return cgroups;
  }

  async ensure(vmId: string, limits: CgroupLimits): Promise<void> {
    for (const { root, settings } of this.#layout?.hierarchies ?? []) {
      const dir = `${root}/${this.#parent}/${vmId}`;
      await mkdir(dir, { recursive: true });
      for (const [file, value] of settings(limits)) await writeFile(`${dir}/${file}`, value);
    }
  }

  procsPaths(vmId: string): string[] {
    return this.#dirs(vmId).map((dir) => `${dir}/cgroup.procs`);
  }

  counterFiles(vmId: string): CounterFiles | undefined {
    return this.#layout?.counterFiles(`${this.#parent}/${vmId}`);
  }

  async emptied(vmId: string): Promise<boolean> {
    for (let waitedMs = 0; waitedMs < exitDeadlineMs; waitedMs += exitPollMs) {
      if ((await this.processes(vmId)).length === 0) return true;
      await delay(exitPollMs);
    }
    return false;
  }

  async remove(vmId: string): Promise<void> {
    for (const dir of this.#dirs(vmId)) await removeWhenEmpty(dir);
  }

  async present(): Promise<string[]> {
    const found = new Set<string>();
    for (const { root } of this.#layout?.hierarchies ?? []) {
      const entries = await readdir(`${root}/${this.#parent}`, { withFileTypes: true }).catch(() => []);
      for (const entry of entries) if (entry.isDirectory()) found.add(entry.name);
    }
    return [...found];
  }

  async processes(vmId: string): Promise<number[]> {
    const pids = new Set<number>();
    for (const dir of this.#dirs(vmId)) {
      const text = await readFile(`${dir}/cgroup.procs`, "utf8").catch(() => "");
      for (const line of text.split("\n")) if (line !== "") pids.add(Number(line));
    }
    return [...pids];
  }

  /** Removes the instance's own parent groups when no VM is left in them. */
  async close(): Promise<void> {
    for (const { root } of this.#layout?.hierarchies ?? [])
      await rmdir(`${root}/${this.#parent}`).catch(() => undefined);
  }

  #dirs(vmId: string): string[] {
    return (this.#layout?.hierarchies ?? []).map(({ root }) => `${root}/${this.#parent}/${vmId}`);
  }
}

/** The kernel refuses to remove a group while an exiting process is still in it. */
async function removeWhenEmpty(dir: string): Promise<void> {
  for (let waitedMs = 0; ; waitedMs += removalPollMs) {
    try {
      await rmdir(dir);
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT") return;
      if (code !== "EBUSY" || waitedMs >= removalDeadlineMs) throw error;
      await delay(removalPollMs);
    }
  }
}
