import { type ErrorReason, ServiceError } from "@unkey/base";
import { untilVm, type VmProcess } from "@unkey/vmm";
import { failureOf } from "./domain/guest-end.ts";
import { partPaths } from "./vm-paths.ts";
import type { StepDeps, VmSession } from "./vm-session.ts";

/** The VM's process when it runs; looks for it where nobody has yet. */
export async function findProcess(deps: StepDeps, session: VmSession): Promise<VmProcess | undefined> {
  if (session.process) return session.process;
  const record = (await deps.hypervisor.find(session.paths.runDir)) ?? session.vm.record;
  if (!record) return undefined;
  session.adopt(await deps.hypervisor.attach(record, within(session.signal, deps.hypervisorTimeoutMs)));
  return session.process;
}

export async function livingProcess(deps: StepDeps, session: VmSession): Promise<VmProcess | undefined> {
  const process = await findProcess(deps, session);
  return process && !isOver(process) ? process : undefined;
}

export async function mustLive(deps: StepDeps, session: VmSession): Promise<VmProcess> {
  const process = await livingProcess(deps, session);
  if (!process) throw new ServiceError("VM_GONE", "the VM's hypervisor process has ended");
  return process;
}

export function isOver(process: VmProcess): boolean {
  return process.state === "ended" || process.state === "gone";
}

export async function defineProcess(deps: StepDeps, session: VmSession): Promise<void> {
  const { vm, identity, paths, signal } = session;
  // An ended guest's process may still be there, and a folder has room for one.
  await killProcess(deps, session);
  const { accelerator } = await deps.probe();
  const network = deps.networks.attachment(identity);
  const process = await deps.hypervisor.create(
    {
      name: vm.id,
      dir: paths.runDir,
      kernelPath: paths.kernel,
      initrdPath: paths.initrd,
      vcpuCount: vm.vcpuCount,
      memoryBytes: vm.memoryBytes,
      accelerator,
      drives: {
        basePath: paths.rootfs,
        basePartPaths: partPaths(paths, vm.stagedRootfs?.partDigests.length ?? 0),
        upperPath: paths.layer,
        configPath: paths.config,
      },
      ...(network ? { network: { tapName: network.tap, macAddress: identity.guestMac } } : {}),
      launch: {
        ...(network ? { netns: network.netns } : {}),
        cgroupProcsPaths: deps.cgroups.procsPaths(vm.id),
        ...(deps.dropPrivileges ? { user: { uid: identity.uid, gid: identity.uid } } : {}),
      },
    },
    within(signal, deps.hypervisorTimeoutMs),
  );
  session.adopt(process);
  await session.update({ record: process.record });
}

export async function killProcess(deps: StepDeps, session: VmSession): Promise<void> {
  const process = await findProcess(deps, session);
  if (process && process.state !== "gone") await process.destroy(within(session.signal, deps.hypervisorTimeoutMs));
}

/** True once the program was started; false when the guest hangs. Throws when there will be no program. */
export async function startsInTime(deps: StepDeps, session: VmSession): Promise<boolean> {
  const { signal, hurry } = session;
  const process = await mustLive(deps, session);
  const deadline = AbortSignal.timeout(deps.bootTimeoutMs);
  const until = AbortSignal.any([signal, hurry, deadline]);
  const hasStarted = (vm: VmProcess) => vm.guest.startedAtUptimeSeconds !== undefined;
  try {
    if (process.state === "created") await process.boot(until);
    else if (process.state === "paused") await process.resume(until);
    await untilVm(process, (vm) => hasStarted(vm) || isOver(vm), until);
  } catch (error) {
    signal.throwIfAborted();
    if (hurry.aborted) throw new ServiceError("VM_BOOT_INTERRUPTED", "the VM was stopped while it booted");
    if (deadline.aborted) return false;
    throw error;
  }
  if (hasStarted(process)) return true;
  const failure = failureOf(process.guest, process.end);
  throw new ServiceError((failure?.reason ?? "GUEST_CRASHED") as ErrorReason, failure?.message ?? "the guest is over");
}

export function within(signal: AbortSignal, ms: number): AbortSignal {
  return AbortSignal.any([signal, AbortSignal.timeout(ms)]);
}
