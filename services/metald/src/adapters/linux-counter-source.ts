import type { VmId } from "@unkey/base";
import type { SlotIdentity } from "../domain/slot-identity.ts";
import type { Cgroups, CounterSource, HostCounters } from "../ports.ts";
import { LinuxCounters } from "./host-counters.ts";

export class LinuxCounterSource implements CounterSource {
  readonly #cgroups: Cgroups;

  constructor(cgroups: Cgroups) {
    this.#cgroups = cgroups;
  }

  ofProcess(vmId: VmId, pid: number, layerPath: string): HostCounters {
    return LinuxCounters.ofProcess({ cgroup: this.#cgroups.counterFiles(vmId), pid, layerPath });
  }

  async ofRemains(vmId: VmId, identity: SlotIdentity, layerPath: string): Promise<HostCounters> {
    return LinuxCounters.ofRemains({ cgroup: this.#cgroups.counterFiles(vmId), layerPath }, identity.netns);
  }
}
