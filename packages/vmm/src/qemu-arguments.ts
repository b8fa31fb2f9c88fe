import { dirname, relative } from "node:path";
import { mib } from "@unkey/base";
import { type DriveId, type VmNetwork, type VmSpec, vmFiles } from "./hypervisor.ts";

export interface QemuFiles {
  /** The monitor's QMP socket. */
  readonly qmpSocket: string;
  /** Where the host speaks to the guest's init. */
  readonly controlSocket: string;
  /** What QEMU itself and the programs that start it print. */
  readonly monitorLog: string;
  /** Written by the launcher before it becomes QEMU. */
  readonly pidFile: string;
}

export function qemuFiles(dir: string): QemuFiles {
  return {
    qmpSocket: `${dir}/qmp.sock`,
    controlSocket: `${dir}/control.sock`,
    monitorLog: `${dir}/monitor.log`,
    pidFile: `${dir}/monitor.pid`,
  };
}

export interface QemuMachine {
  readonly accelerator: "kvm" | "tcg";
  readonly memoryBytes: number;
  readonly vcpuCount: number;
  readonly kernelPath: string;
  readonly initrdPath: string;
  /** Needed under TCG: see readHostTscKhz. */
  readonly tscKhz: number | undefined;
  readonly kernelArguments: readonly string[];
}

/** QEMU would let translated code grow to 1 GiB, which no memory limit of a VM accounts for; when this is full it starts over. */
const translationCacheMib = 64;

/** Machine, processor, memory, kernel and console: what a trial boot and a VM have in common. */
export function machineArguments(machine: QemuMachine, consoleLog: string): string[] {
  const kvm = machine.accelerator === "kvm";
  const kernelArguments = [
    "console=ttyS0",
    // A guest that resets or panics ends: `-action reboot=shutdown` turns the reset into that.
    "reboot=t",
    "panic=-1",
    // Every line on the console and the self-tests of unused ciphers cost boot time.
    "quiet",
    "cryptomgr.notests",
    ...(kvm ? [] : emulationArguments(machine.tscKhz)),
    ...machine.kernelArguments,
  ];
  return [
    ["-nodefaults", "-no-user-config", "-display", "none"],
    ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"],
    ["-accel", kvm ? "kvm" : `tcg,thread=multi,tb-size=${translationCacheMib}`],
    // With ACPI the guest finds its virtio devices; kernels without VIRTIO_MMIO_CMDLINE_DEVICES need it. With the second
    // IO-APIC, which needs ACPI too, there is room for 24 of them, without it for 8.
    ["-machine", "microvm,x-option-roms=off,isa-serial=on,acpi=on,ioapic2=on,rtc=on"],
    ["-cpu", kvm ? "host" : "max"],
    ["-m", `${machine.memoryBytes / mib}M`],
    ["-smp", String(machine.vcpuCount)],
    ["-kernel", machine.kernelPath],
    ["-initrd", machine.initrdPath],
    ["-append", kernelArguments.join(" ")],
    ["-chardev", `file,id=console,path=${consoleLog},append=on`],
    ["-serial", "chardev:console"],
  ].flat();
}

/** What a kernel needs and what it should spare itself when each of its instructions is translated. */
function emulationArguments(tscKhz: number | undefined): string[] {
  return [
    "no_timer_check",
    ...(tscKhz === undefined ? [] : [`tsc_early_khz=${tscKhz}`]),
    // Zeroing each allocation guards the guest's kernel against its own app, and costs a tenth of the boot.
    "init_on_alloc=0",
    "rcupdate.rcu_expedited=1",
  ];
}

/**
 * Everything after the program's name for one VM. The spec has been checked: no value can end its option early. Files in the
 * VM's folder and beside it are named relative to it, where the monitor starts: its user needs no way through the folders
 * above. What the user must not replace stands beside the folder, since the folder itself is the user's.
 */
export function vmArguments(spec: VmSpec, tscKhz: number | undefined): string[] {
  const near = (path: string): string => (path.startsWith(`${dirname(spec.dir)}/`) ? relative(spec.dir, path) : path);
  const files = vmFiles(spec.dir);
  const sockets = qemuFiles(spec.dir);
  const machine: QemuMachine = {
    accelerator: spec.accelerator === "kvm" ? "kvm" : "tcg",
    memoryBytes: spec.memoryBytes,
    vcpuCount: spec.vcpuCount,
    kernelPath: near(spec.kernelPath),
    initrdPath: near(spec.initrdPath),
    tscKhz,
    kernelArguments: [],
  };
  return [
    ["-name", spec.name],
    machineArguments(machine, near(files.consoleLog)),
    // The process outlives its guest, so that final counters can be read.
    ["-S", "-action", "reboot=shutdown,shutdown=pause,panic=shutdown"],
    ["-chardev", `socket,id=qmp,path=${near(sockets.qmpSocket)},server=on,wait=off`],
    ["-mon", "chardev=qmp,mode=control"],
    drive("base", near(spec.drives.basePath), true),
    ...spec.drives.basePartPaths.map((path, index) => drive(`base.${index + 1}`, near(path), true)),
    drive("upper", near(spec.drives.upperPath), false),
    drive("config", near(spec.drives.configPath), true),
    ["-device", "virtio-serial-device"],
    // A console port takes the guest's words whether or not a client is connected, and the log file keeps them.
    [
      "-chardev",
      `socket,id=control,path=${near(sockets.controlSocket)},server=on,wait=off,logfile=${near(files.controlLog)},logappend=on`,
    ],
    ["-device", "virtconsole,chardev=control,name=control"],
    ["-chardev", `file,id=app,path=${near(files.appLog)},append=on`],
    ["-device", "virtserialport,chardev=app,name=app"],
    spec.network === undefined ? [] : network(spec.network),
  ].flat();
}

function network({ tapName, macAddress }: VmNetwork): string[] {
  return [
    "-netdev",
    `tap,id=net,ifname=${tapName},script=no,downscript=no`,
    "-device",
    `virtio-net-device,netdev=net,mac=${macAddress}`,
  ];
}

/** The guest knows its drives by serial number, the counters by the device's id. */
function drive(id: DriveId | `base.${number}`, path: string, readOnly: boolean): string[] {
  return [
    "-blockdev",
    `driver=file,node-name=${id},filename=${path}${readOnly ? ",read-only=on" : ""}`,
    "-device",
    `virtio-blk-device,id=${id}-drive,drive=${id},serial=${id}`,
  ];
}
