import { formatBytes, mib, ServiceError } from "@unkey/base";

/** What a VM asks for, or what a host has. */
export interface Resources {
  readonly vcpuCount: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
}

export interface Capacity extends Resources {
  /** Most virtual CPUs of one VM: more than the host has would only wait for each other. */
  readonly maxVcpusPerVm: number;
}

/** Host memory that a VM's hypervisor process takes beside the guest's: code, translation cache, device buffers. */
export const hypervisorOverheadBytes = 192 * mib;

/** What `wanted` costs the host. */
export function footprint(wanted: Resources): Resources {
  return { ...wanted, memoryBytes: wanted.memoryBytes + hypervisorOverheadBytes };
}

export function sum(resources: readonly Resources[]): Resources {
  return resources.reduce(
    (total, next) => ({
      vcpuCount: total.vcpuCount + next.vcpuCount,
      memoryBytes: total.memoryBytes + next.memoryBytes,
      diskBytes: total.diskBytes + next.diskBytes,
    }),
    { vcpuCount: 0, memoryBytes: 0, diskBytes: 0 },
  );
}

/** Throws VM_TOO_LARGE when an empty host could not run `wanted`, HOST_FULL when only this one, with `taken`, cannot. */
export function admit(wanted: Resources, taken: Resources, capacity: Capacity): void {
  const cost = footprint(wanted);
  const overhead = formatBytes(hypervisorOverheadBytes);
  if (wanted.memoryBytes % mib !== 0) {
    throw new ServiceError("INVALID_REQUEST", "spec.resources.memory_bytes: is not a multiple of 1 MiB");
  }
  if (wanted.vcpuCount > capacity.maxVcpusPerVm) {
    const message = `${wanted.vcpuCount} vCPUs were asked for; the host has ${capacity.maxVcpusPerVm} CPUs`;
    throw new ServiceError("VM_TOO_LARGE", message);
  }
  if (cost.memoryBytes > capacity.memoryBytes) {
    const message = `${formatBytes(wanted.memoryBytes)} of memory (and ${overhead} for the hypervisor) were asked for; the host gives VMs ${formatBytes(capacity.memoryBytes)} in all`;
    throw new ServiceError("VM_TOO_LARGE", message);
  }
  if (cost.diskBytes > capacity.diskBytes) {
    const message = `${formatBytes(wanted.diskBytes)} of disk were asked for; the host gives VMs ${formatBytes(capacity.diskBytes)} in all`;
    throw new ServiceError("VM_TOO_LARGE", message);
  }
  const left = {
    vcpuCount: capacity.vcpuCount - taken.vcpuCount,
    memoryBytes: capacity.memoryBytes - taken.memoryBytes,
    diskBytes: capacity.diskBytes - taken.diskBytes,
  };
  const missing = [
    cost.vcpuCount > left.vcpuCount && `${cost.vcpuCount} vCPUs of which ${Math.max(0, left.vcpuCount)} are free`,
    cost.memoryBytes > left.memoryBytes &&
      `${formatBytes(cost.memoryBytes)} of memory of which ${formatBytes(Math.max(0, left.memoryBytes))} are free`,
    cost.diskBytes > left.diskBytes &&
      `${formatBytes(cost.diskBytes)} of disk of which ${formatBytes(Math.max(0, left.diskBytes))} are free`,
  ].filter((text) => text !== false);
  if (missing.length > 0) throw new ServiceError("HOST_FULL", `the VM needs ${missing.join(" and ")} on this host`);
}
