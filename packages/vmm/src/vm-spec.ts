import { mib, ServiceError } from "@unkey/base";
import type { VmSpec } from "./hypervisor.ts";

const maxVcpuCount = 64;
/** QEMU's microvm has 24 virtio-mmio transports; base, upper layer, config, serial ports and network take five of them. */
const maxBaseParts = 16;
/** With less, the guest kernel of this release panics before init runs. */
const minMemoryBytes = 96 * mib;
/** The path of a Unix socket fits sockaddr_un with its terminating zero (unix(7)). */
const maxSocketPathBytes = 107;

/** Throws VM_SPEC_INVALID naming the first part of `spec` that no hypervisor could run. */
export function checkVmSpec(spec: VmSpec): void {
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(spec.name)) invalid("name: write 1–64 characters of A–Z, a–z, 0–9, _ and -");
  if (!Number.isInteger(spec.vcpuCount) || spec.vcpuCount < 1 || spec.vcpuCount > maxVcpuCount) {
    invalid(`vcpuCount: ${spec.vcpuCount} is not in 1–${maxVcpuCount}`);
  }
  if (!Number.isSafeInteger(spec.memoryBytes) || spec.memoryBytes < minMemoryBytes || spec.memoryBytes % mib !== 0) {
    invalid(`memoryBytes: ${spec.memoryBytes} is not a multiple of 1 MiB from 96 MiB up`);
  }
  const { basePartPaths, ...drives } = spec.drives;
  for (const [field, path] of Object.entries({
    dir: spec.dir,
    kernelPath: spec.kernelPath,
    initrdPath: spec.initrdPath,
    ...drives,
  })) {
    checkPath(field, path);
  }
  if (basePartPaths.length > maxBaseParts) {
    invalid(
      `basePartPaths: a VM has room for ${maxBaseParts} parts of its root filesystem, not ${basePartPaths.length}`,
    );
  }
  for (const [index, path] of basePartPaths.entries()) checkPath(`basePartPaths[${index}]`, path);
  if (spec.network !== undefined) {
    if (!/^[A-Za-z0-9_.-]{1,15}$/.test(spec.network.tapName)) invalid("network.tapName is not an interface name");
    if (!/^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/.test(spec.network.macAddress)) {
      invalid("network.macAddress is not a locally administered unicast address such as 02:00:00:00:00:01");
    }
  }
  checkLaunch(spec);
}

/** Throws VM_SPEC_INVALID when a Unix socket cannot have this path. */
export function checkSocketPath(path: string): void {
  const length = Buffer.byteLength(path);
  if (length > maxSocketPathBytes) {
    invalid(`dir: the socket ${path} needs ${length} bytes and a socket's path may have ${maxSocketPathBytes}`);
  }
}

function checkLaunch({ launch }: VmSpec): void {
  if (launch?.netns !== undefined && !/^[A-Za-z0-9_.-]{1,64}$/.test(launch.netns)) {
    invalid("launch.netns is not a name of a network namespace");
  }
  for (const path of launch?.cgroupProcsPaths ?? []) {
    checkPath("launch.cgroupProcsPaths", path);
    if (!path.endsWith("/cgroup.procs")) invalid(`launch.cgroupProcsPaths: ${path} is not a cgroup.procs file`);
  }
  const { uid, gid } = launch?.user ?? { uid: 0, gid: 0 };
  for (const id of [uid, gid]) {
    if (!Number.isInteger(id) || id < 0 || id >= 2 ** 32 - 1) invalid(`launch.user: ${id} is not a user or group id`);
  }
}

/** QEMU reads commas as separators of options, and a NUL or line break belongs in no path of ours. */
function checkPath(field: string, path: string): void {
  if (!path.startsWith("/") || !/^[^,\p{Cc}]+$/u.test(path)) {
    invalid(
      `${field}: ${JSON.stringify(path.slice(0, 200))} is not an absolute path free of commas and control characters`,
    );
  }
}

function invalid(message: string): never {
  throw new ServiceError("VM_SPEC_INVALID", message);
}
