import { mib, parseByteSize, ServiceError } from "@unkey/base";

/** What the API gives a VM when nothing is asked for; needed here because it takes all three or none. */
const defaults = { vcpuCount: 1, memoryBytes: 256 * mib, diskBytes: 1024 * mib };

/** What the contract allows at least: with less, the guest kernel of this release does not come up. */
export const minMemoryBytes = 96 * mib;

export type ResourceFlags = {
  readonly vcpus?: number;
  readonly memory?: number;
  readonly disk?: number;
};

/** The resources to ask for, or undefined to leave all to the API. */
export function resourcesOf({ vcpus, memory, disk }: ResourceFlags) {
  if (vcpus === undefined && memory === undefined && disk === undefined) return undefined;
  return {
    vcpuCount: vcpus ?? defaults.vcpuCount,
    memoryBytes: BigInt(memory ?? defaults.memoryBytes),
    diskBytes: BigInt(disk ?? defaults.diskBytes),
  };
}

export function sizeAtLeast(input: string, field: string, minBytes: number): number {
  const bytes = parseByteSize(input, field);
  if (bytes >= minBytes) return bytes;
  throw new ServiceError("INVALID_REQUEST", `${field}: ${input} is less than ${minBytes / mib} MiB`);
}
