import { create } from "@bufbuild/protobuf";
import { ResourcesSchema } from "@unkey/api/common";
import {
  type ExitStatus,
  ExitStatusSchema,
  VmFailureSchema,
  type Vm as VmMessage,
  VmSchema,
  VmState,
} from "@unkey/api/metal";
import type { HostId } from "@unkey/base";
import type { VmState as State } from "@unkey/model";
import type { Exit, Vm } from "./domain/vm.ts";

const states: Readonly<Record<State, VmState>> = {
  creating: VmState.CREATING,
  created: VmState.CREATED,
  booting: VmState.BOOTING,
  running: VmState.RUNNING,
  paused: VmState.PAUSED,
  stopping: VmState.STOPPING,
  stopped: VmState.STOPPED,
  failed: VmState.FAILED,
  deleting: VmState.DELETING,
  deleted: VmState.DELETED,
};

/** A VM as the contract shows it. */
export function toVmMessage(vm: Vm, place: { readonly hostId: HostId; readonly ipAddress: string }): VmMessage {
  return create(VmSchema, {
    vmId: vm.id,
    tenantId: vm.tenantId,
    appId: vm.appId,
    deploymentId: vm.deploymentId,
    state: states[vm.state],
    incarnation: vm.incarnation,
    resources: create(ResourcesSchema, {
      vcpuCount: vm.vcpuCount,
      memoryBytes: BigInt(vm.memoryBytes),
      diskBytes: BigInt(vm.diskBytes),
    }),
    ipAddress: place.ipAddress,
    hostId: place.hostId,
    ...(vm.exit ? { exit: toExitMessage(vm.exit) } : {}),
    ...(vm.failure
      ? { failure: create(VmFailureSchema, { ...vm.failure, lastLines: [...vm.failure.lastLines] }) }
      : {}),
    createdAtMs: BigInt(vm.createdAtMs),
    startedAtMs: BigInt(vm.startedAtMs),
    endedAtMs: BigInt(vm.endedAtMs),
    revision: BigInt(vm.revision),
    rootfsAssetId: vm.rootfsAssetId,
  });
}

function toExitMessage(exit: Exit): ExitStatus {
  if ("code" in exit) return create(ExitStatusSchema, { outcome: { case: "code", value: exit.code } });
  if ("signal" in exit) return create(ExitStatusSchema, { outcome: { case: "signal", value: exit.signal } });
  return create(ExitStatusSchema, { outcome: { case: "unknownBecause", value: exit.unknownBecause } });
}
