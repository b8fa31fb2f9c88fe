export type { AppExit, GuestReport } from "./guest-report.ts";
export {
  type Accelerator,
  type BlockCounters,
  type DriveId,
  type Hypervisor,
  type HypervisorCapabilities,
  type ProbeRequest,
  type ProbeResult,
  type VmEnd,
  type VmEvent,
  type VmFiles,
  type VmLaunch,
  type VmNetwork,
  type VmProcess,
  type VmRecord,
  type VmSpec,
  vmFiles,
} from "./hypervisor.ts";
export {
  type MemoryFault,
  MemoryHypervisor,
  type MemoryHypervisorOptions,
  type MemoryVerb,
} from "./memory-hypervisor.ts";
export type { MemoryGuest, MemoryMachine } from "./memory-machine.ts";
export { QemuHypervisor, type QemuHypervisorOptions } from "./qemu-hypervisor.ts";
export { untilVm } from "./until.ts";
export type { VmProcessState } from "./vm-process-state.ts";
