import { access, readFile } from "node:fs/promises";
import type { CgroupLimits, CounterFiles } from "./linux-cgroups.ts";

export interface Hierarchy {
  readonly root: string;
  /** What to write into cgroup.subtree_control so that children get the controllers; v2 only. */
  readonly delegate?: string;
  readonly settings: (limits: CgroupLimits) => readonly (readonly [file: string, value: string])[];
}

export interface CgroupLayout {
  readonly detail: string;
  readonly hierarchies: readonly Hierarchy[];
  readonly counterFiles: (group: string) => CounterFiles;
}

const cpuPeriodUs = 100_000;

function cpuQuotaUs({ cpuCount }: CgroupLimits): number {
  return Math.round(cpuCount * cpuPeriodUs);
}

/** How this host groups processes, or why it does not. */
export async function detectCgroups(mountInfoPath = "/proc/self/mountinfo"): Promise<CgroupLayout | string> {
  if (process.getuid?.() !== 0) return "needs root";
  const mounts = parseMounts(await readFile(mountInfoPath, "utf8"));
  for (const { root } of mounts.filter((mount) => mount.type === "cgroup2")) {
    const offered = (await readFile(`${root}/cgroup.controllers`, "utf8").catch(() => "")).trim().split(" ");
    if (["cpu", "memory", "pids"].every((controller) => offered.includes(controller))) return unified(root);
  }
  const rootOf = (controller: string): string | undefined =>
    mounts.find((mount) => mount.type === "cgroup" && mount.options.includes(controller))?.root;
  const [cpu, cpuacct, memory, pids] = ["cpu", "cpuacct", "memory", "pids"].map(rootOf);
  if (!cpu || !cpuacct || !memory || !pids) return "this host offers neither cgroup v2 nor all of v1's controllers";
  await access(`${cpuacct}/cpuacct.usage`);
  return legacy({ cpu, cpuacct, memory, pids });
}

function unified(root: string): CgroupLayout {
  return {
    detail: "cgroup v2: cpu, memory, pids",
    hierarchies: [
      {
        root,
        delegate: "+cpu +memory +pids",
        settings: (limits) => [
          ["cpu.max", `${cpuQuotaUs(limits)} ${cpuPeriodUs}`],
          ["memory.max", String(limits.memoryBytes)],
          ["pids.max", String(limits.maxProcesses)],
        ],
      },
    ],
    counterFiles: (group) => ({
      cpu: { path: `${root}/${group}/cpu.stat`, format: "cpu.stat" },
      memory: `${root}/${group}/memory.current`,
    }),
  };
}

function legacy(roots: { cpu: string; cpuacct: string; memory: string; pids: string }): CgroupLayout {
  const hierarchies: Hierarchy[] = [
    {
      root: roots.cpu,
      settings: (limits) => [
        ["cpu.cfs_period_us", String(cpuPeriodUs)],
        ["cpu.cfs_quota_us", String(cpuQuotaUs(limits))],
      ],
    },
    { root: roots.memory, settings: (limits) => [["memory.limit_in_bytes", String(limits.memoryBytes)]] },
    { root: roots.pids, settings: (limits) => [["pids.max", String(limits.maxProcesses)]] },
  ];
  // Distributions often mount cpu and cpuacct as one hierarchy.
  if (roots.cpuacct !== roots.cpu) hierarchies.push({ root: roots.cpuacct, settings: () => [] });
  return {
    detail: "cgroup v1: cpu, cpuacct, memory, pids",
    hierarchies,
    counterFiles: (group) => ({
      cpu: { path: `${roots.cpuacct}/${group}/cpuacct.usage`, format: "cpuacct.usage" },
      memory: `${roots.memory}/${group}/memory.usage_in_bytes`,
    }),
  };
}

interface Mount {
  readonly root: string;
  readonly type: string;
  /** Of the super block: v1 lists its controllers there. */
  readonly options: readonly string[];
}

/** Lines of proc_pid_mountinfo(5): fields, optional fields, a hyphen, type, source, super options. */
function parseMounts(text: string): Mount[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const [before = "", after = ""] = line.split(" - ");
      const [type = "", , options = ""] = after.split(" ");
      return { root: before.split(" ")[4] ?? "", type, options: options.split(",") };
    });
}
