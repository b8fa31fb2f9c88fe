import { fromBinary } from "@bufbuild/protobuf";
import { VmSpecSchema } from "@unkey/api/metal";
import { type Clock, type ErrorReason, ServiceError } from "@unkey/base";
import { type Hypervisor, type ProbeResult, untilVm, type VmProcess } from "@unkey/vmm";
import { hypervisorOverheadBytes } from "./domain/capacity.ts";
import { failureOf } from "./domain/guest-end.ts";
import type { StepKind } from "./domain/plans.ts";
import type { SeriesKey } from "./domain/sample.ts";
import { guestConfigOf } from "./guest-config.ts";
import type { MeteringLink } from "./metering/metering-link.ts";
import { finalSample, type Sampler } from "./metering/sampler.ts";
import type { Assets, Cgroups, CounterSource, Disks, Networks, SeriesStore } from "./ports.ts";
import type { VmSession } from "./vm-session.ts";

export interface StepDeps {
  readonly hypervisor: Hypervisor;
  /** How guests run on this host; found once. */
  readonly probe: () => Promise<ProbeResult>;
  readonly assets: Assets;
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
  "stage-assets": async ({ assets, disks }, { vm, paths, update, signal }) => {
    const spec = fromBinary(VmSpecSchema, vm.spec);
    await disks.ensureDir(paths.dir, 0o711);
    await disks.ensureDir(paths.assetsDir, 0o711);
    const { leaseId } = await assets.stage(
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
    await update({ leaseId });
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
      vcpuCount: vm.vcpuCount,
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

/** The VM's process when it runs; looks for it where nobody has yet. */
export async function findProcess(deps: StepDeps, session: VmSession): Promise<VmProcess | undefined> {
  if (session.process) return session.process;
  const record = (await deps.hypervisor.find(session.paths.runDir)) ?? session.vm.record;
  if (!record) return undefined;
  session.adopt(await deps.hypervisor.attach(record, within(session.signal, deps.hypervisorTimeoutMs)));
  return session.process;
}

async function livingProcess(deps: StepDeps, session: VmSession): Promise<VmProcess | undefined> {
  const process = await findProcess(deps, session);
  return process && !isOver(process) ? process : undefined;
}

async function mustLive(deps: StepDeps, session: VmSession): Promise<VmProcess> {
  const process = await livingProcess(deps, session);
  if (!process) throw new ServiceError("VM_GONE", "the VM's hypervisor process has ended");
  return process;
}

function isOver(process: VmProcess): boolean {
  return process.state === "ended" || process.state === "gone";
}

async function defineProcess(deps: StepDeps, session: VmSession): Promise<void> {
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
      drives: { basePath: paths.rootfs, upperPath: paths.layer, configPath: paths.config },
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

async function killProcess(deps: StepDeps, session: VmSession): Promise<void> {
  const process = await findProcess(deps, session);
  if (process && process.state !== "gone") await process.destroy(within(session.signal, deps.hypervisorTimeoutMs));
}

async function beginMetering(deps: StepDeps, session: VmSession): Promise<void> {
  const { vm, paths, signal } = session;
  const { series: store, sampler, counters: source, metering } = deps;
  const process = await mustLive(deps, session);
  const counters = source.ofProcess(vm.id, process.record.pid, paths.layer);
  try {
    const key: SeriesKey = {
      tenantId: vm.tenantId,
      vmId: vm.id,
      incarnation: vm.incarnation,
      appId: vm.appId,
      deploymentId: vm.deploymentId,
    };
    const known = await store.get(vm.id, vm.incarnation);
    const series = known ?? (await store.begin(key, await sampler.baseline(process, counters, vm.memoryBytes)));
    await metering.announceStart(series, signal);
    sampler.add(series, process, counters, vm.memoryBytes);
  } catch (error) {
    counters.close();
    throw error;
  }
}

/** Goes on reading a VM that lives: for a metald that has started again. */
export async function continueMetering(deps: StepDeps, session: VmSession): Promise<void> {
  const { vm, paths } = session;
  const series = await deps.series.get(vm.id, vm.incarnation);
  const process = await livingProcess(deps, session);
  if (!series || series.final || !process || deps.sampler.has(vm.id)) return;
  const counters = deps.counters.ofProcess(vm.id, process.record.pid, paths.layer);
  deps.sampler.add(series, process, counters, vm.memoryBytes);
}

/** Ends the incarnation's process and takes its final sample, in that order: then nothing can be counted any more. */
async function endMetering(deps: StepDeps, session: VmSession): Promise<void> {
  const { vm, identity, paths, signal } = session;
  const { series: store, sampler, counters: source, metering, clock, cgroups } = deps;
  const series = await store.get(vm.id, vm.incarnation);
  if (!series || series.final) return;
  const process = await findProcess(deps, session);
  // Frozen, it counts nothing between this reading and its end.
  if (process?.state === "running")
    await process.pause(within(signal, deps.hypervisorTimeoutMs)).catch(() => undefined);
  const noBlock = { diskReadBytes: Number.NaN, diskWriteBytes: Number.NaN };
  const block = process && process.state !== "gone" ? await sampler.readBlock(process) : noBlock;
  await killProcess(deps, session);
  // A process that has a zombie's state may have threads that still tear down its memory, and that is counted too.
  if (!(await cgroups.emptied(vm.id))) session.log.warn("the VM's processes linger; its last counters may miss them");
  let final = sampler.finish(vm.id, block);
  if (!final) {
    const counters = await source.ofRemains(vm.id, identity, paths.layer);
    try {
      final = {
        ...finalSample(series, counters, { atMs: clock.nowMs(), memoryAllocatedBytes: vm.memoryBytes }),
        ...block,
      };
    } finally {
      counters.close();
    }
  }
  await store.finish(vm.id, vm.incarnation, final);
  metering.announceStop(vm.id, vm.incarnation);
}

/** True once the program was started; false when the guest hangs. Throws when there will be no program. */
async function startsInTime(deps: StepDeps, session: VmSession): Promise<boolean> {
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

function within(signal: AbortSignal, ms: number): AbortSignal {
  return AbortSignal.any([signal, AbortSignal.timeout(ms)]);
}
