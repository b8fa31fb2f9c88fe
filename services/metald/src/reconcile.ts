import { readdir } from "node:fs/promises";
import { isId } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { Hypervisor } from "@unkey/vmm";
import { type Instance, slotIdentity } from "./domain/slot-identity.ts";
import type { Cgroups, Disks, Networks, VmStore } from "./ports.ts";
import { vmPaths } from "./vm-paths.ts";

export interface ReconcileDeps {
  readonly store: VmStore;
  readonly networks: Networks;
  readonly cgroups: Cgroups;
  readonly disks: Disks;
  readonly hypervisor: Hypervisor;
  readonly instance: Instance;
  readonly vmsDir: string;
  readonly log: Logger;
}

/**
 * Compares what this instance has on the host with its VMs, once, before any is taken up. What belongs to none is removed,
 * unless a process lives in it: that is left alone, its address is not given out, and it is reported. Yields the names of
 * what was quarantined.
 */
export async function reconcileHost(deps: ReconcileDeps): Promise<string[]> {
  const { store, networks, cgroups, disks, hypervisor, instance, vmsDir, log } = deps;
  const vms = await store.alive();
  const slots = new Set(vms.map((vm) => vm.slot));
  const ids = new Set<string>(vms.map((vm) => vm.id));
  const quarantined: string[] = [];

  for (const name of await readdir(vmsDir).catch(() => [])) {
    if (ids.has(name) || !isId("vm", name)) continue;
    const { dir, runDir } = vmPaths(vmsDir, name);
    const record = await hypervisor.find(runDir);
    if (record) quarantined.push(`process ${record.pid} in ${dir}`);
    else await disks.remove(dir);
  }
  for (const name of await cgroups.present()) {
    if (ids.has(name)) continue;
    const pids = await cgroups.processes(name);
    if (pids.length > 0) quarantined.push(`cgroup ${name} with processes ${pids.join(", ")}`);
    else await cgroups.remove(name);
  }
  for (const slot of await networks.present()) {
    if (slots.has(slot)) continue;
    const identity = slotIdentity(instance, slot);
    const pids = await networks.processes(identity);
    if (pids.length > 0) {
      quarantined.push(`netns ${identity.netns} with processes ${pids.join(", ")}`);
      await store.withdrawSlot(slot);
    } else {
      await networks.remove(identity);
    }
  }
  for (const what of quarantined) log.error("left alone: it belongs to no VM that is known here", { what });
  return quarantined;
}
