import type { HostId, TenantId, VmId } from "@unkey/base";
import type { CgroupLimits, CounterFiles } from "@unkey/cgroup";
import type { Capacity, Resources } from "./domain/capacity.ts";
import type { Sample, Series, SeriesKey } from "./domain/sample.ts";
import type { SlotIdentity } from "./domain/slot-identity.ts";
import type { StagedRootfs, Vm, VmPatch } from "./domain/vm.ts";

/** A wish for a VM, as the store takes it. */
export type Admission = Pick<
  Vm,
  | "id"
  | "tenantId"
  | "appId"
  | "deploymentId"
  | "specHash"
  | "spec"
  | "vcpuCount"
  | "memoryBytes"
  | "diskBytes"
  | "rootfsAssetId"
  | "createdAtMs"
> & {
  /** Room that was held for it; empty for none. */
  readonly reservationId: string;
};

/** Room held for a VM that is about to be created. */
export interface Reservation extends Resources {
  readonly id: string;
  readonly tenantId: TenantId;
  readonly expiresAtMs: number;
}

export interface ListQuery {
  /** Undefined: every tenant's. */
  readonly tenantId: TenantId | undefined;
  readonly appId: string | undefined;
  readonly includeDeleted: boolean;
  /** Only VMs older than this one. */
  readonly before: { readonly createdAtMs: number; readonly id: string } | undefined;
  readonly limit: number;
}

/** The VMs of this host, durably. */
export interface VmStore {
  fact(name: string): Promise<string | undefined>;
  setFact(name: string, value: string): Promise<void>;
  hostId(): Promise<HostId>;
  nextEpoch(): Promise<number>;
  /**
   * Takes room and a slot for a new VM, or finds the one that the same wish made before, in one transaction. Throws
   * VM_ID_REUSED, VM_TOO_LARGE, HOST_FULL or HOST_ADDRESSES_EXHAUSTED.
   */
  admit(admission: Admission, capacity: Capacity, lastSlot: number): Promise<{ vm: Vm; isNew: boolean }>;
  /**
   * Holds room, in one transaction; the same id again extends the hold. Throws as `admit` does, and RESERVATION_ID_REUSED
   * for an id that holds other room.
   */
  reserve(reservation: Reservation, capacity: Capacity, nowMs: number): Promise<void>;
  /** Gives held room back; a reservation that is gone is success. */
  releaseReservation(tenantId: TenantId, id: string): Promise<void>;
  /** Yields the VM as it is then. A slot that is taken away rests before it is given again. */
  update(vm: Vm, patch: VmPatch, nowMs: number): Promise<Vm>;
  get(id: VmId): Promise<Vm | undefined>;
  /** All that are not deleted, oldest first. */
  alive(): Promise<Vm[]>;
  /** Newest first. */
  list(query: ListQuery): Promise<Vm[]>;
  /** What the VMs that are not deleted take, hypervisors included, and what is held at `nowMs`. */
  taken(nowMs: number): Promise<Resources & { readonly vmCount: number }>;
  /** 0 when no VM has one. */
  highestSlot(): Promise<number>;
  /** Never gives this slot to a VM. */
  withdrawSlot(slot: number): Promise<void>;
}

/** Begins and ends of incarnations that billaged has to hear of, durably. */
export interface SeriesStore {
  /** A repeat keeps the first baseline. */
  begin(key: SeriesKey, baseline: Sample): Promise<Series>;
  /** Undefined before the begin, and after billaged has confirmed the end. */
  get(vmId: VmId, incarnation: number): Promise<Series | undefined>;
  /** The first final sample stays. */
  finish(vmId: VmId, incarnation: number, final: Sample): Promise<void>;
  confirmStart(vmId: VmId, incarnation: number): Promise<void>;
  confirmStop(vmId: VmId, incarnation: number): Promise<void>;
  /** Of incarnations that have not ended. */
  unconfirmedStarts(): Promise<Series[]>;
  unconfirmedStops(): Promise<Series[]>;
}

/** What a guest is told about its network beside its own address. */
export interface GuestNetworkSettings {
  /** Reached through the tap, outside the guest's own /32. */
  readonly gateway: string;
  readonly resolvers: readonly string[];
}

/** Networks of VMs, by slot. Every verb may be repeated. */
export interface Networks {
  readonly active: boolean;
  /** Which kind, or why none. */
  readonly detail: string;
  readonly guestSettings: GuestNetworkSettings;
  /** Makes the slot's network complete; an unfinished one is made anew. */
  ensure(identity: SlotIdentity): Promise<void>;
  /** What the hypervisor attaches to; undefined where VMs have no network. */
  attachment(identity: SlotIdentity): { readonly netns: string; readonly tap: string } | undefined;
  remove(identity: SlotIdentity): Promise<void>;
  /** Slots of this instance that the host holds anything of. */
  present(): Promise<number[]>;
  /** Processes inside a slot's netns. */
  processes(identity: SlotIdentity): Promise<number[]>;
}

/** Process groups of VMs, with limits and counters. Every verb may be repeated. */
export interface Cgroups {
  readonly active: boolean;
  /** Which kind, or why none. */
  readonly detail: string;
  ensure(vmId: string, limits: CgroupLimits): Promise<void>;
  /** The cgroup.procs files that the VM's process has to join; none where the host has no cgroups. */
  procsPaths(vmId: string): string[];
  /** Undefined where the host has no cgroups. */
  counterFiles(vmId: string): CounterFiles | undefined;
  /** Resolves when the kernel has done with every process that was in the group; false when one stays. */
  emptied(vmId: string): Promise<boolean>;
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

/** Opens the counters of VMs. */
export interface CounterSource {
  /** While the VM's process lives. */
  ofProcess(vmId: VmId, pid: number, layerPath: string): HostCounters;
  /** After the process has ended while nobody watched. */
  ofRemains(vmId: VmId, identity: SlotIdentity, layerPath: string): Promise<HostCounters>;
}

/** One VM's counters, held open. */
export interface HostCounters {
  /** Synchronous and without a process: called ten times a second for every VM. */
  read(): HostReading;
  close(): void;
}

/** Where VMs get their kernels and file systems from. */
export interface Assets {
  /**
   * Places `kernel`, `initrd` and `rootfs` into `dir` under a lease, the root filesystem's parts as `rootfs.1` and so on. The
   * same VM again gets the same lease.
   */
  stage(
    request: StageRequest,
    signal: AbortSignal,
  ): Promise<{ readonly leaseId: string; readonly rootfs: StagedRootfs }>;
  renew(tenantId: TenantId, leaseId: string, signal: AbortSignal): Promise<void>;
  release(tenantId: TenantId, leaseId: string, signal: AbortSignal): Promise<void>;
}

/** Whose root filesystems are booted. */
export interface RootfsTrust {
  /**
   * Returns when the provenance of the root filesystem holds. Throws PROVENANCE_MISSING or PROVENANCE_INVALID, or what keeps it
   * from being read.
   */
  check(request: ProvenanceRequest, signal: AbortSignal): Promise<void>;
  /**
   * Returns when what was staged is what the provenance that `check` kept is about: the very image, with the parts that it
   * names. Throws PROVENANCE_INVALID.
   */
  checkStaged(request: StagedCheckRequest): Promise<void>;
}

export interface ProvenanceRequest {
  readonly tenantId: TenantId;
  readonly rootfsAssetId: string;
  /** File in an existing folder where what was found is kept for the next time. */
  readonly keepPath: string;
}

export interface StagedCheckRequest {
  readonly keepPath: string;
  readonly rootfsPath: string;
  readonly partPaths: readonly string[];
  /** As `Vm.stagedRootfs`. */
  readonly staged: StagedRootfs | undefined;
}

export interface StageRequest {
  readonly tenantId: TenantId;
  readonly vmId: VmId;
  readonly rootfsAssetId: string;
  /** Empty for the host's default. */
  readonly kernelAssetId: string;
  readonly initrdAssetId: string;
  readonly dir: string;
}
