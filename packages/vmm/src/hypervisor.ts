import type { GuestReport } from "./guest-report.ts";
import type { VmProcessState } from "./vm-process-state.ts";

/** How a guest's instructions are executed: by the processor, by QEMU's translator, or not at all (in memory). */
export type Accelerator = "kvm" | "tcg" | "memory";

export interface HypervisorCapabilities {
  readonly pause: boolean;
  /** A VM outlives the process that created it and can be attached to again from its record. */
  readonly adopt: boolean;
  readonly blockCounters: boolean;
  readonly snapshot: boolean;
}

/** What the host can do with this hypervisor, found by trying. */
export interface ProbeResult {
  readonly accelerator: Accelerator;
  readonly hypervisorVersion: string;
  /** Why a faster accelerator is not used, for an operator to read; undefined when the fastest one works. */
  readonly fallbackReason?: string;
}

export interface ProbeRequest {
  /** An existing private folder for the trial VM; it is left empty. */
  readonly dir: string;
  readonly kernelPath: string;
  readonly initrdPath: string;
}

export interface VmNetwork {
  /** An existing persistent tap that the monitor's uid owns, inside `launch.netns` where one is named. */
  readonly tapName: string;
  /** `02:…` colon-separated, lower case. */
  readonly macAddress: string;
}

/** How the monitor process is confined; every part is optional and absent means "as the caller". */
export interface VmLaunch {
  /** Name of a network namespace as `ip netns` knows it. */
  readonly netns?: string;
  /** Absolute paths of cgroup.procs files (one on cgroup v2, one per controller on v1) the process joins before it becomes the monitor. */
  readonly cgroupProcsPaths?: readonly string[];
  /** The monitor runs with these ids, without capabilities and with no_new_privs. Needs root. */
  readonly user?: { readonly uid: number; readonly gid: number };
}

export interface VmSpec {
  /** Shown in process lists: 1–64 characters of [A-Za-z0-9_-]. */
  readonly name: string;
  /**
   * An existing folder that belongs to this VM alone, reachable by `launch.user`. Sockets, logs and the pid file are made
   * in it, so a caller that stored only this path can still find a VM whose creation it did not live to record.
   */
  readonly dir: string;
  readonly kernelPath: string;
  readonly initrdPath: string;
  readonly vcpuCount: number;
  /** A multiple of 1 MiB. */
  readonly memoryBytes: number;
  readonly accelerator: Accelerator;
  readonly drives: {
    /** EROFS or ext4 root file system, shared between VMs, opened read-only. */
    readonly basePath: string;
    /**
     * The further devices that an EROFS base names in its device table, in the table's order; shared and read-only as the
     * base is. At most 16.
     */
    readonly basePartPaths: readonly string[];
    /** The VM's private ext4 layer, opened read-write. */
    readonly upperPath: string;
    /** What `renderGuestConfig` of @unkey/guest returned, opened read-only. */
    readonly configPath: string;
  };
  readonly network?: VmNetwork;
  readonly launch?: VmLaunch;
}

/** All that a later process needs to adopt a VM; plain JSON, to be stored as it is. */
export interface VmRecord {
  readonly driver: string;
  readonly dir: string;
  readonly pid: number;
  /** Field 22 of /proc/<pid>/stat: with the pid and the boot it names one process (proc(5)). */
  readonly startTicks: number;
  /** /proc/sys/kernel/random/boot_id of the host's boot in which the process was started. */
  readonly bootId: string;
}

export type DriveId = "base" | "upper" | "config";

/** Cumulative since the VM was created. */
export interface BlockCounters {
  /** `base` counts the base's parts too. */
  readonly drive: DriveId;
  readonly readBytes: bigint;
  readonly writeBytes: bigint;
  readonly readOperations: bigint;
  readonly writeOperations: bigint;
  readonly flushOperations: bigint;
}

/** Why there is no guest any more. */
export interface VmEnd {
  /** guest: it powered off, reset or crashed in an orderly way; monitor: the process was ended or died. */
  readonly by: "guest" | "monitor";
  /** The hypervisor's word for it ("guest-shutdown", "guest-reset", "guest-panic", "host-qmp-quit", "process-died", …). */
  readonly reason: string;
}

export type VmEvent =
  | { readonly type: "state"; readonly state: VmProcessState }
  | { readonly type: "guest"; readonly report: GuestReport };

/**
 * One VM's monitor process. Verbs that the state does not accept throw VM_STATE_CONFLICT; a verb on a process that is not
 * there throws VM_GONE; a monitor that answers nonsense or hangs up throws VMM_UNAVAILABLE. Every verb gives up when its
 * signal aborts, with the signal's reason; what the verb did by then shows in `state`.
 */
export interface VmProcess extends AsyncDisposable {
  readonly record: VmRecord;
  readonly state: VmProcessState;
  /** What the guest has said so far; survives in the VM's folder while nobody listens. */
  readonly guest: GuestReport;
  /** Set from `ended` on. */
  readonly end: VmEnd | undefined;
  /** Calls `listener` for each change after now, in order; the returned function stops that. Listeners must not throw. */
  subscribe(listener: (event: VmEvent) => void): () => void;
  /** created → running. */
  boot(signal: AbortSignal): Promise<void>;
  /** running → paused. */
  pause(signal: AbortSignal): Promise<void>;
  /** paused → running. */
  resume(signal: AbortSignal): Promise<void>;
  /**
   * Asks the guest's init to stop the app (its stop signal, KILL after `graceMs`) and to power off. Resolves when the
   * request is on its way; the guest being over shows as `ended`. Only while running; repeating is harmless.
   */
  requestShutdown(options: { readonly graceMs: number }, signal: AbortSignal): Promise<void>;
  /** In any state but gone. */
  readBlockCounters(signal: AbortSignal): Promise<readonly BlockCounters[]>;
  /** Ends the process, at once and whatever the guest does; resolves when it is gone. Safe to repeat. */
  destroy(signal: AbortSignal): Promise<void>;
  /** Lets go of the VM without touching it: it keeps running and can be attached to again. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** A way to run VMs on this host. */
export interface Hypervisor {
  readonly name: string;
  readonly capabilities: HypervisorCapabilities;
  /** Finds out by a trial boot how guests can run here. Throws HYPERVISOR_UNAVAILABLE when they cannot. */
  probe(request: ProbeRequest, signal: AbortSignal): Promise<ProbeResult>;
  /**
   * Starts the monitor with the guest defined and not running. Throws VM_SPEC_INVALID or VM_LAUNCH_FAILED, and then
   * leaves no process behind.
   */
  create(spec: VmSpec, signal: AbortSignal): Promise<VmProcess>;
  /** Adopts a VM from its record. A process that is gone yields a handle in state `gone` that still knows what the guest said. */
  attach(record: VmRecord, signal: AbortSignal): Promise<VmProcess>;
  /** The record of the VM whose monitor was started in `dir`, undefined when none runs there now. */
  find(dir: string): Promise<VmRecord | undefined>;
}

/** Files in a VM's folder that others read. */
export interface VmFiles {
  /** The guest kernel's console; appended to, may be truncated at any time. */
  readonly consoleLog: string;
  /** What the app wrote to stdout and stderr; appended to, may be truncated at any time. */
  readonly appLog: string;
  /** The guest's control messages, one JSON object a line. */
  readonly controlLog: string;
}

export function vmFiles(dir: string): VmFiles {
  return { consoleLog: `${dir}/console.log`, appLog: `${dir}/app.log`, controlLog: `${dir}/control.log` };
}
