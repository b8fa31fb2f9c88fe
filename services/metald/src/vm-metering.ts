import type { SeriesKey } from "./domain/sample.ts";
import { finalSample, noBlockBytes } from "./metering/sampler.ts";
import { findProcess, killProcess, livingProcess, mustLive, within } from "./vm-process.ts";
import type { StepDeps, VmSession } from "./vm-session.ts";

export async function beginMetering(deps: StepDeps, session: VmSession): Promise<void> {
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
    sampler.add(series, process, counters, vm.memoryBytes);
    // Ticks that fall due while billaged is told are read all the same and sent after.
    sampler.hold(vm.id);
    await metering.announceStart(series, signal);
    sampler.release(vm.id);
  } catch (error) {
    sampler.forget(vm.id);
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
export async function endMetering(deps: StepDeps, session: VmSession): Promise<void> {
  const { vm, identity, paths, signal } = session;
  const { series: store, sampler, counters: source, metering, clock, cgroups } = deps;
  const series = await store.get(vm.id, vm.incarnation);
  if (!series || series.final) return;
  const process = await findProcess(deps, session);
  // Frozen, it counts nothing between this reading and its end.
  if (process?.state === "running")
    await process.pause(within(signal, deps.hypervisorTimeoutMs)).catch(() => undefined);
  const block = process && process.state !== "gone" ? await sampler.readBlock(process) : noBlockBytes;
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
