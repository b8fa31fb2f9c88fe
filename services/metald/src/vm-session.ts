import type { Logger } from "@unkey/daemon";
import type { VmProcess } from "@unkey/vmm";
import type { SlotIdentity } from "./domain/slot-identity.ts";
import type { Vm, VmPatch } from "./domain/vm.ts";
import type { VmPaths } from "./vm-paths.ts";

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
