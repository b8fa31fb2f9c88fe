import type { SlotIdentity } from "../domain/slot-identity.ts";
import type { Cgroups, CounterSource, HostCounters, HostReading, Networks } from "../ports.ts";

const nothingRuns = "the memory hypervisor runs no guest";

/** Stands in for the host's network where no guest is run. Remembers what it was asked for, so that tests see leaks. */
export class MemoryNetworks implements Networks {
  readonly active = false;
  readonly detail = nothingRuns;
  readonly guestSettings = { gateway: "169.254.0.1", resolvers: [] };
  readonly #slots = new Set<number>();

  async ensure(identity: SlotIdentity): Promise<void> {
    this.#slots.add(identity.slot);
  }

  attachment(): undefined {
    return undefined;
  }

  async remove(identity: SlotIdentity): Promise<void> {
    this.#slots.delete(identity.slot);
  }

  async present(): Promise<number[]> {
    return [...this.#slots];
  }

  async processes(): Promise<number[]> {
    return [];
  }
}

/** Stands in for the host's cgroups. */
export class MemoryCgroups implements Cgroups {
  readonly active = false;
  readonly detail = nothingRuns;
  readonly #groups = new Set<string>();

  async ensure(vmId: string): Promise<void> {
    this.#groups.add(vmId);
  }

  procsPaths(): string[] {
    return [];
  }

  async emptied(): Promise<boolean> {
    return true;
  }

  counterFiles(): undefined {
    return undefined;
  }

  async remove(vmId: string): Promise<void> {
    this.#groups.delete(vmId);
  }

  async present(): Promise<string[]> {
    return [...this.#groups];
  }

  async processes(): Promise<number[]> {
    return [];
  }
}

const idle: HostReading = {
  cpuTimeUs: 0,
  memoryResidentBytes: 0,
  diskAllocatedBytes: 0,
  netInBytes: 0,
  netOutBytes: 0,
};

/** Counters that tests set; they outlive the process that counts, as a cgroup's do. */
export class MemoryCounters implements CounterSource {
  readonly #readings = new Map<string, HostReading>();

  /** Adds to what the host has counted for a VM. */
  add(vmId: string, more: Partial<HostReading>): void {
    const reading = this.#readings.get(vmId) ?? idle;
    const next = { ...reading };
    for (const name of Object.keys(more) as (keyof HostReading)[]) {
      Object.assign(next, { [name]: reading[name] + (more[name] ?? 0) });
    }
    this.#readings.set(vmId, next);
  }

  ofProcess(vmId: string): HostCounters {
    return { read: () => this.#readings.get(vmId) ?? idle, close: () => undefined };
  }

  async ofRemains(vmId: string): Promise<HostCounters> {
    return this.ofProcess(vmId);
  }
}
