import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fchownSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
} from "node:fs";
import { relative } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { ServiceError } from "@unkey/base";
import {
  type Hypervisor,
  type HypervisorCapabilities,
  type ProbeRequest,
  type ProbeResult,
  type VmProcess,
  type VmRecord,
  type VmSpec,
  vmFiles,
} from "./hypervisor.ts";
import { kvmDevice, launchCommand, minFileLimitBytes, missingDevices, tunDevice } from "./launch.ts";
import { identifyProcess, isSameProcess, processArguments, processFolder } from "./process-identity.ts";
import { qemuFiles, vmArguments } from "./qemu-arguments.ts";
import { probeQemu } from "./qemu-probe.ts";
import { launchFailed, QemuProcess, spawnMonitor } from "./qemu-process.ts";
import { QemuVm } from "./qemu-vm.ts";
import { readHostTscKhz } from "./tsc.ts";
import { checkSocketPath, checkVmSpec } from "./vm-spec.ts";

export interface QemuHypervisorOptions {
  /** Name or path of the program. */
  readonly program?: string;
}

/** The monitor's socket is there some 30 ms after its start; nothing announces it. */
const socketRetryMs = 10;

/** VMs as QEMU `microvm` processes. Holds no state: everything about a VM is in its folder and its process. */
export class QemuHypervisor implements Hypervisor {
  readonly name = "qemu";
  readonly capabilities: HypervisorCapabilities = { pause: true, adopt: true, blockCounters: true, snapshot: false };
  readonly #program: string;
  #tscKhz: { readonly value: number | undefined } | undefined;

  constructor(options: QemuHypervisorOptions = {}) {
    this.#program = options.program ?? "qemu-system-x86_64";
  }

  async probe(request: ProbeRequest, signal: AbortSignal): Promise<ProbeResult> {
    return probeQemu(this.#program, request, signal);
  }

  async create(spec: VmSpec, signal: AbortSignal): Promise<VmProcess> {
    signal.throwIfAborted();
    checkVmSpec(spec);
    if (spec.accelerator === "memory") throw new ServiceError("VM_SPEC_INVALID", "accelerator: QEMU has kvm and tcg");
    const files = qemuFiles(spec.dir);
    checkSocketPath(files.qmpSocket);
    checkSocketPath(files.controlSocket);
    if ((await this.find(spec.dir)) !== undefined) {
      throw new ServiceError("VM_STATE_CONFLICT", `a VM already runs in ${spec.dir}`);
    }
    const upperBytes = prepareFolder(spec);
    const launch = spec.launch ?? {};
    const needed = [
      ...(spec.accelerator === "kvm" ? [kvmDevice] : []),
      ...(spec.network === undefined ? [] : [tunDevice]),
    ];
    const command = launchCommand([this.#program, ...vmArguments(spec, this.#hostTscKhz())], {
      launch,
      pidFile: files.pidFile,
      deviceDir: `${spec.dir}/dev`,
      privateDevices: missingDevices(needed, launch),
      maxFileBytes: Math.max(minFileLimitBytes, upperBytes),
    });
    const { process } = await spawnMonitor({ command, dir: spec.dir, monitorLog: files.monitorLog, driver: this.name });
    try {
      return await openWhenListening(process, signal);
    } catch (error) {
      process.kill();
      await process.exited;
      throw error;
    }
  }

  async attach(record: VmRecord, signal: AbortSignal): Promise<VmProcess> {
    if (record.driver !== this.name) {
      throw new ServiceError("VM_SPEC_INVALID", `record.driver: ${record.driver} is not ${this.name}`);
    }
    const process = new QemuProcess(record, undefined);
    if (!process.isAlive) return QemuVm.remains(process);
    try {
      return await QemuVm.open(process, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (await process.isGoneWithin()) return QemuVm.remains(process);
      throw error;
    }
  }

  async find(dir: string): Promise<VmRecord | undefined> {
    const { pidFile, qmpSocket } = qemuFiles(dir);
    const pid = readPid(pidFile);
    if (pid === undefined) return undefined;
    const identity = identifyProcess(pid);
    // The pid may be another's by now; only our monitor works in this folder and serves this socket.
    const socket = `path=${relative(dir, qmpSocket)},`;
    const serves = processArguments(pid)?.some((argument) => argument.includes(socket)) ?? false;
    const isOurs = serves && processFolder(pid) === realpathSync(dir);
    return identity !== undefined && isOurs && isSameProcess(identity)
      ? { driver: this.name, dir, ...identity }
      : undefined;
  }

  #hostTscKhz(): number | undefined {
    this.#tscKhz ??= { value: readHostTscKhz() };
    return this.#tscKhz.value;
  }
}

/** Opens the monitor as soon as it listens; VM_LAUNCH_FAILED when it ends before. */
async function openWhenListening(process: QemuProcess, signal: AbortSignal): Promise<QemuVm> {
  const { qmpSocket, monitorLog } = qemuFiles(process.record.dir);
  const ended = process.exited.then(() => true);
  for (;;) {
    signal.throwIfAborted();
    if (statSync(qmpSocket, { throwIfNoEntry: false })?.isSocket()) {
      try {
        return await QemuVm.open(process, signal);
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof ServiceError) || error.reason !== "VMM_UNAVAILABLE") throw error;
      }
    }
    if (await Promise.race([ended, delay(socketRetryMs, false)])) throw launchFailed(monitorLog);
  }
}

/** Makes the VM's files, owned by the monitor's user, and returns the size of its writable drive. */
function prepareFolder(spec: VmSpec): number {
  const { dir, launch, drives } = spec;
  if (!statSync(dir, { throwIfNoEntry: false })?.isDirectory()) {
    throw new ServiceError("VM_SPEC_INVALID", `dir: ${dir} is not a folder`);
  }
  const { consoleLog, appLog, controlLog } = vmFiles(dir);
  const { qmpSocket, controlSocket, pidFile } = qemuFiles(dir);
  for (const path of [qmpSocket, controlSocket, pidFile, controlLog]) rmSync(path, { force: true });
  mkdirSync(`${dir}/dev`, { recursive: true, mode: 0o700 });
  for (const path of [consoleLog, appLog, controlLog]) {
    const fd = openSync(
      path,
      constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW,
      0o600,
    );
    try {
      if (launch?.user !== undefined) fchownSync(fd, launch.user.uid, launch.user.gid);
    } finally {
      closeSync(fd);
    }
  }
  if (launch?.user !== undefined) chownSync(dir, launch.user.uid, launch.user.gid);
  chmodSync(dir, 0o700);
  const upper = statSync(drives.upperPath, { throwIfNoEntry: false });
  if (upper === undefined)
    throw new ServiceError("VM_SPEC_INVALID", `drives.upperPath: ${drives.upperPath} does not exist`);
  return upper.size;
}

function readPid(path: string): number | undefined {
  try {
    const text = readFileSync(path, {
      encoding: "latin1",
      flag: constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
    });
    return /^\d{1,10}\n$/.test(text) ? Number(text) : undefined;
  } catch {
    return undefined;
  }
}
