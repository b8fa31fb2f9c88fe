import { arch, hostname } from "node:os";
import { create } from "@bufbuild/protobuf";
import { ResourcesSchema } from "@unkey/api/common";
import { type Host, HostSchema, IsolationLayerSchema } from "@unkey/api/metal";
import type { ProbeResult } from "@unkey/vmm";
import type { Capacity, Resources } from "./domain/capacity.ts";
import type { Cgroups, Networks } from "./ports.ts";
import type { MetalService } from "./service.ts";

export interface IsolationLayer {
  readonly name: string;
  readonly active: boolean;
  readonly detail: string;
}

export interface HostViewDeps {
  readonly service: MetalService;
  readonly hypervisor: string;
  readonly capacity: Capacity;
  /** Settled once the host was tried; undefined until then. */
  readonly probed: () => ProbeResult | undefined;
  readonly networks: Networks;
  readonly cgroups: Cgroups;
  readonly dropPrivileges: boolean;
}

/** What this host has and isolates with. A layer that is not active is listed as such. */
export class HostView {
  readonly #deps: HostViewDeps;

  constructor(deps: HostViewDeps) {
    this.#deps = deps;
  }

  async show(): Promise<Host> {
    const { service, hypervisor, capacity } = this.#deps;
    const taken = await service.taken();
    return create(HostSchema, {
      hostId: service.hostId,
      hostname: hostname(),
      hypervisor,
      acceleration: this.#acceleration(),
      accelerationReason: this.#accelerationReason(),
      capacity: toMessage(capacity),
      allocated: toMessage(taken),
      vmCount: taken.vmCount,
      layers: this.layers().map((layer) => create(IsolationLayerSchema, layer)),
      draining: service.draining,
      architecture: arch() === "x64" ? "amd64" : arch(),
    });
  }

  layers(): IsolationLayer[] {
    const { hypervisor, probed, networks, cgroups, dropPrivileges } = this.#deps;
    const accelerator = probed()?.accelerator;
    const real = hypervisor !== "memory";
    const ifReal = (name: string, active: boolean, detail: string): IsolationLayer =>
      real ? { name, active, detail } : { name, active: false, detail: "the memory hypervisor runs no guest" };
    return [
      ifReal(
        "hardware-virtualization",
        accelerator === "kvm",
        accelerator === "tcg" ? `software emulation: ${this.#accelerationReason()}` : this.#accelerationReason(),
      ),
      ifReal("netns", networks.active, networks.detail),
      ifReal("cgroup", cgroups.active, cgroups.detail),
      ifReal("uid", dropPrivileges, dropPrivileges ? "a user and group per VM" : "needs root"),
      ifReal("no-new-privileges", dropPrivileges, dropPrivileges ? "without capabilities" : "needs root"),
      ifReal("seccomp", true, "QEMU's own sandbox"),
      ifReal("chroot", false, "not offered by this release"),
      ifReal("mount-namespace", false, "not offered by this release"),
      ifReal("pid-namespace", false, "not offered by this release"),
    ];
  }

  #acceleration(): string {
    const accelerator = this.#deps.probed()?.accelerator;
    return accelerator === undefined || accelerator === "memory" ? "none" : accelerator;
  }

  #accelerationReason(): string {
    const result = this.#deps.probed();
    if (result === undefined) return "not tried yet";
    if (result.accelerator === "memory") return "no guest is run: this hypervisor is for tests";
    return result.fallbackReason ?? "a trial boot worked";
  }
}

function toMessage({ vcpuCount, memoryBytes, diskBytes }: Resources) {
  return create(ResourcesSchema, { vcpuCount, memoryBytes: BigInt(memoryBytes), diskBytes: BigInt(diskBytes) });
}
