import type { Host } from "@unkey/api/metal";
import { formatBytes, isServiceError, newId, ServiceError, type VmId } from "@unkey/base";
import type { Platform } from "../adapters/platform.ts";
import { exceeded, type HostRoom, placementOrder, type Size } from "../domain/placement.ts";
import type { WorkStore } from "../store/work-store.ts";
import type { Step, Work } from "./step.ts";
import type { VmRemover } from "./vm-steps.ts";

/** Long enough for the create step to come; forgotten reservations give the room back by themselves. */
const holdMs = 120_000;
const callTimeoutMs = 10_000;
const hostsLookedAt = 2;

/** Chooses a host per VM and holds room there. The VM's id and host are stored before any host hears of them. */
export function placeStep(deps: {
  readonly platform: Platform;
  readonly store: WorkStore;
  readonly remover: VmRemover;
  readonly nowMs: () => number;
  readonly random: () => number;
}): Step {
  const { platform, store, remover, nowMs, random } = deps;

  const reserve = async (work: Work, hostId: string, reservationId: string, size: Size, signal: AbortSignal) => {
    const { tenantId } = work.deployment;
    await platform.hosts.on(hostId, (metal) =>
      metal.reserveCapacity(
        { tenantId, reservationId, resources: size, holdMs },
        platform.call(work.acting, { signal, timeoutMs: callTimeoutMs }),
      ),
    );
  };

  const placeOne = async (work: Work, ordinal: number, size: Size, signal: AbortSignal): Promise<string> => {
    const known = work.deployment.vms.find((vm) => vm.ordinal === ordinal);
    const vmId: VmId = known?.vmId ?? newId("vm", nowMs());
    const hosts = (await platform.hosts.reachable()).map(roomOf);
    refuseImpossible(hosts, size);
    const candidates = placementOrder(hosts, size, hostsLookedAt, random).map(({ hostId }) => hostId);
    // A replica that died may hold room already: the same reservation on the same host costs nothing.
    const order = known ? [known.hostId, ...candidates.filter((id) => id !== known.hostId)] : candidates;
    let silent: ServiceError | undefined;
    for (const hostId of order) {
      const reservationId = hostId === known?.hostId ? known.reservationId : newId("rsv", nowMs());
      await store.planVm(work.claim, { vmId, ordinal, hostId, reservationId }, nowMs());
      try {
        await reserve(work, hostId, reservationId, size, signal);
        return hostId;
      } catch (error) {
        if (!isServiceError(error) || signal.aborted) throw error;
        if (error.code === "unavailable") silent = error;
        else if (error.code !== "resource_exhausted") throw error;
      }
    }
    // A host that did not answer may have had room: asking again is worth more than giving up.
    if (silent) throw silent;
    throw new ServiceError("HOSTS_FULL", `no host has room for ${describeSize(size)} now`);
  };

  return {
    timeoutMs: 60_000,

    async run(work, signal) {
      const { request } = work.deployment;
      const { resources } = request;
      if (!resources) throw new Error("a deployment without resources was accepted");
      const places: string[] = [];
      for (let ordinal = 0; ordinal < request.vmCount; ordinal++) {
        places.push(await placeOne(work, ordinal, resources, signal));
      }
      const hosts = new Set(places).size;
      return { detail: places.length === 1 ? `on ${places[0]}` : `${places.length} VMs on ${hosts} host(s)` };
    },

    undo: (work, signal) => remover.removeAll(work, signal),
  };
}

export function roomOf(host: Host): HostRoom {
  const none: Size = { vcpuCount: 0, memoryBytes: 0n, diskBytes: 0n };
  const { hostId, draining, capacity = none, allocated = none } = host;
  return { hostId, draining, capacity, allocated };
}

/** Throws EXCEEDS_HOSTS when `size` is more than any of the hosts has in all, HOST_UNREACHABLE when there is none. */
export function refuseImpossible(hosts: readonly HostRoom[], size: Size): void {
  if (hosts.length === 0) throw new ServiceError("HOST_UNREACHABLE", "no host answers");
  if (hosts.some((host) => exceeded(host, size).length === 0)) return;
  const largest = hosts.reduce((a, b) => (b.capacity.memoryBytes > a.capacity.memoryBytes ? b : a)).capacity;
  throw new ServiceError(
    "EXCEEDS_HOSTS",
    `each VM would need ${describeSize(size)}, and the largest host has ${describeSize(largest)}`,
    {
      metadata: {
        capacityVcpus: String(largest.vcpuCount),
        capacityMemoryBytes: String(largest.memoryBytes),
        capacityDiskBytes: String(largest.diskBytes),
      },
    },
  );
}

function describeSize({ vcpuCount, memoryBytes, diskBytes }: Size): string {
  return `${vcpuCount} vCPU, ${formatBytes(memoryBytes)} of memory and ${formatBytes(diskBytes)} of disk`;
}
