import type { Clock } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { Hypervisor, ProbeResult, VmProcess } from "@unkey/vmm";
import type { SlotIdentity } from "./domain/slot-identity.ts";
import type { Vm, VmPatch } from "./domain/vm.ts";
import type { MeteringLink } from "./metering/metering-link.ts";
import type { Sampler } from "./metering/sampler.ts";
import type { Assets, Cgroups, CounterSource, Disks, Networks, RootfsTrust, SeriesStore } from "./ports.ts";
import type { VmPaths } from "./vm-paths.ts";

/** What the steps of a verb work with. */
export interface StepDeps {
  readonly hypervisor: Hypervisor;
  /** How guests run on this host; found once. */
  readonly probe: () => Promise<ProbeResult>;
  readonly assets: Assets;
  readonly trust: RootfsTrust;
  readonly disks: Disks;
  readonly networks: Networks;
  readonly cgroups: Cgroups;
  readonly counters: CounterSource;
  readonly series: SeriesStore;
  readonly sampler: Sampler;
  readonly metering: Pick<MeteringLink, "announceStart" | "announceStop">;
  readonly clock: Clock;
  readonly bootTimeoutMs: number;
  /** For a single request to a hypervisor process. */
  readonly hypervisorTimeoutMs: number;
  /** VMs run with a user of their own; false only where nothing is run. */
  readonly dropPrivileges: boolean;
}

/** What the steps of a verb work on: one VM, held by its driver alone. */
export interface VmSession {
  /** As it is recorded now. */
  readonly vm: Vm;
  readonly identity: SlotIdentity;
  readonly paths: VmPaths;
  readonly log: Logger;
  /** Attached to, or found gone; undefined when there never was one or nobody has looked yet. */
  readonly process: VmProcess | undefined;
  /** Aborts when this metald must let go of everything. */
  readonly signal: AbortSignal;
  /** Aborts when somebody wants the VM ended sooner than the running verb would. */
  readonly hurry: AbortSignal;
  /** End the guest without asking it. */
  readonly force: boolean;
  /** Records a change at once. */
  readonly update: (patch: VmPatch) => Promise<void>;
  /** Makes `process` this VM's, and follows it. */
  readonly adopt: (process: VmProcess) => void;
}
