import type { SlotIdentity } from "./domain/slot-identity.ts";

/** What a hypervisor process and its guest need to know about their network. */
export interface VmNetwork {
  readonly netns: string;
  readonly tap: string;
  readonly guestAddress: string;
  readonly guestMac: string;
  /** Reached through the tap, outside the guest's own /32. */
  readonly gateway: string;
  readonly resolvers: readonly string[];
}

/** Networks of VMs, by slot. Every verb may be repeated. */
export interface Networks {
  /** Makes the slot's network complete and open for no process yet; an unfinished one is made anew. */
  ensure(identity: SlotIdentity): Promise<VmNetwork>;
  remove(identity: SlotIdentity): Promise<void>;
  /** Slots of this instance that the host holds anything of. */
  present(): Promise<number[]>;
}

export interface CgroupLimits {
  readonly vcpuCount: number;
  /** Guest memory and what its hypervisor needs beside it. */
  readonly memoryBytes: number;
  readonly maxProcesses: number;
}

/** Files that a VM's use of processor and memory is read from. */
export interface CounterFiles {
  readonly cpu: { readonly path: string; readonly format: "cpu.stat" | "cpuacct.usage" };
  readonly memory: string;
}

/** Process groups of VMs, with limits and counters. Every verb may be repeated. */
export interface Cgroups {
  readonly active: boolean;
  /** Which kind, or why none. */
  readonly detail: string;
  /** Yields the cgroup.procs files that the VM's process has to join; none where the host has no cgroups. */
  ensure(vmId: string, limits: CgroupLimits): Promise<string[]>;
  /** Undefined where the host has no cgroups. */
  counterFiles(vmId: string): CounterFiles | undefined;
  /** Waits a little for exiting processes; a group with a living one stays and is an error. */
  remove(vmId: string): Promise<void>;
  /** Names of the groups that this instance has. */
  present(): Promise<string[]>;
  /** Processes in a group. */
  processes(vmId: string): Promise<number[]>;
}

export interface DiskOwner {
  readonly uid: number;
  readonly gid: number;
}

/** Files and folders of VMs. Every verb may be repeated. */
export interface Disks {
  /** A sparse ext4 image without journal; an existing one keeps its content and changes owner. */
  ensureLayer(path: string, sizeBytes: number, owner: DiskOwner): Promise<void>;
  /** Replaces the file at once; only `owner` can read it. */
  writeConfig(path: string, content: Uint8Array, owner: DiskOwner): Promise<void>;
  ensureDir(path: string, mode: number, owner?: DiskOwner): Promise<void>;
  remove(path: string): Promise<void>;
}

/** What the host counted for one VM until now; NaN where it could not be read. */
export interface HostReading {
  readonly cpuTimeUs: number;
  readonly memoryResidentBytes: number;
  readonly diskAllocatedBytes: number;
  readonly netInBytes: number;
  readonly netOutBytes: number;
}

/** One VM's counters, held open. */
export interface HostCounters {
  /** Synchronous and without a process: called ten times a second for every VM. */
  read(): HostReading;
  close(): void;
}
