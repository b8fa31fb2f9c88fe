import { fromBinary } from "@bufbuild/protobuf";
import { VmSpecSchema } from "@unkey/api/metal";
import { ServiceError } from "@unkey/base";
import { untilVm } from "@unkey/vmm";
import { hypervisorOverheadBytes } from "./domain/capacity.ts";
import type { StepKind } from "./domain/plans.ts";
import { guestConfigOf } from "./guest-config.ts";
import { beginMetering, endMetering } from "./vm-metering.ts";
import { partPaths } from "./vm-paths.ts";
import { defineProcess, isOver, killProcess, livingProcess, mustLive, startsInTime, within } from "./vm-process.ts";
import type { StepDeps, VmSession } from "./vm-session.ts";

type Step = (deps: StepDeps, session: VmSession) => Promise<void>;

const stagingTimeoutMs = 60_000;
const releaseTimeoutMs = 10_000;
/** From the end of the program to the end of the guest: it writes back its files. */
const powerOffMs = 10_000;
const defaultStopGraceMs = 10_000;
const bootAttempts = 2;
/** Threads count: those of virtual CPUs, and up to 64 that QEMU's disk requests wait in. */
const maxProcesses = 256;

/** What each kind of step does. Every one may be run again, whatever an earlier run came to. */
export const vmSteps: Readonly<Record<StepKind, Step>> = {
  "check-provenance": async ({ trust, disks }, { vm, paths, signal }) => {
    const { rootfsAssetId } = fromBinary(VmSpecSchema, vm.spec);
    await disks.ensureDir(paths.dir, 0o711);
    await trust.check(
      { tenantId: vm.tenantId, rootfsAssetId, keepPath: paths.provenance },
      within(signal, stagingTimeoutMs),
    );
  },

  "stage-assets": async ({ assets, disks }, { vm, paths, update, signal }) => {
    const spec = fromBinary(VmSpecSchema, vm.spec);
    await disks.ensureDir(paths.dir, 0o711);
    await disks.ensureDir(paths.assetsDir, 0o711);
    const { leaseId, rootfs } = await assets.stage(
      {
        tenantId: vm.tenantId,
        vmId: vm.id,
        rootfsAssetId: spec.rootfsAssetId,
        kernelAssetId: spec.kernelAssetId,
        initrdAssetId: spec.initrdAssetId,
        dir: paths.assetsDir,
      },
      within(signal, stagingTimeoutMs),
    );
    await update({ leaseId, stagedRootfs: rootfs });
  },

  "check-rootfs": async ({ trust }, { vm: { stagedRootfs: staged }, paths }) => {
    await trust.checkStaged({
      keepPath: paths.provenance,
      rootfsPath: paths.rootfs,
      partPaths: partPaths(paths, staged?.partDigests.length ?? 0),
      staged,
    });
  },

  "make-disks": async (deps, session) => {
    const { vm, identity, paths } = session;
    if (await livingProcess(deps, session)) return; // it has them open
    const owner = { uid: identity.uid, gid: identity.uid };
    const network = { address: identity.guestAddress, ...deps.networks.guestSettings };
    await deps.disks.ensureDir(paths.runDir, 0o700, owner);
    await deps.disks.ensureLayer(paths.layer, vm.diskBytes, owner);
    await deps.disks.writeConfig(paths.config, guestConfigOf(vm, network), owner);
  },

  "make-network": ({ networks }, { identity }) => networks.ensure(identity),

  "make-cgroup": async ({ cgroups }, { vm }) => {
    await cgroups.ensure(vm.id, {
      cpuCount: vm.vcpuCount,
      memoryBytes: vm.memoryBytes + hypervisorOverheadBytes,
      maxProcesses,
    });
  },

  "define-process": async (deps, session) => {
    if (await livingProcess(deps, session)) return;
    const { vm } = session;
    if (vm.state === "booting" && (await deps.series.get(vm.id, vm.incarnation))) {
      throw new ServiceError("VM_DIED", "the VM's hypervisor process ended while it booted");
    }
    await defineProcess(deps, session);
  },

  "begin-metering": (deps, session) => beginMetering(deps, session),

  "start-guest": async (deps, session) => {
    for (let attempt = 1; ; attempt++) {
      if (await startsInTime(deps, session)) return;
      if (attempt === bootAttempts) {
        const message = `the guest did not start the program within ${deps.bootTimeoutMs} ms, ${bootAttempts} times`;
        throw new ServiceError("VM_BOOT_TIMEOUT", message);
      }
      // Emulated guests hang at times before their init: once more, as an incarnation of its own.
      session.log.warn("boot hangs; trying once more", { incarnation: session.vm.incarnation });
      await endMetering(deps, session);
      await killProcess(deps, session);
      await session.update({ incarnation: session.vm.incarnation + 1 });
      await defineProcess(deps, session);
      await beginMetering(deps, session);
    }
  },

  "pause-guest": async (deps, session) => {
    const process = await mustLive(deps, session);
    if (process.state !== "paused") await process.pause(within(session.signal, deps.hypervisorTimeoutMs));
  },

  "resume-guest": async (deps, session) => {
    const process = await mustLive(deps, session);
    if (process.state !== "running") await process.resume(within(session.signal, deps.hypervisorTimeoutMs));
  },

  "stop-guest": async (deps, session) => {
    const process = await livingProcess(deps, session);
    if (!process || session.force || session.hurry.aborted) return;
    const { vm, log, signal } = session;
    const graceMs = fromBinary(VmSpecSchema, vm.spec).stopGraceMs || defaultStopGraceMs;
    const ended = AbortSignal.any([session.hurry, within(signal, graceMs + powerOffMs)]);
    try {
      if (process.state === "paused") await process.resume(within(signal, deps.hypervisorTimeoutMs));
      if (process.state === "running")
        await process.requestShutdown({ graceMs }, within(signal, deps.hypervisorTimeoutMs));
      if (process.state === "running") await untilVm(process, isOver, ended);
    } catch (error) {
      signal.throwIfAborted();
      log.warn("the guest does not power off; it is ended", { error });
    }
  },

  "end-metering": (deps, session) => endMetering(deps, session),

  "kill-process": (deps, session) => killProcess(deps, session),

  "remove-cgroup": ({ cgroups }, { vm }) => cgroups.remove(vm.id),

  "remove-network": ({ networks }, { identity }) => networks.remove(identity),

  "remove-files": ({ disks }, { paths }) => disks.remove(paths.dir),

  "release-lease": async ({ assets }, { vm, signal, update, log }) => {
    if (vm.leaseId === undefined) return; // one that was never recorded ends by itself
    try {
      await assets.release(vm.tenantId, vm.leaseId, within(signal, releaseTimeoutMs));
    } catch (error) {
      signal.throwIfAborted();
      log.warn("the lease is left to expire", { leaseId: vm.leaseId, error });
    }
    await update({ leaseId: undefined });
  },
};
