import { closeSync, constants, openSync, readFileSync, readSync } from "node:fs";

const maxKernelLogRecords = 65_536;

/**
 * The host's time-stamp counter rate in kHz. A guest whose instructions QEMU translates reads the host's counter but has
 * no timer to measure it against, and about 1 boot in 12 hangs trying; a wrong rate would make its clock run wrong. The
 * kernel's own measurement is best; what the processor is sold as comes next; its speed of the moment last. Undefined on
 * hosts that tell nothing.
 */
export function readHostTscKhz(): number | undefined {
  return tscFromKernelLog(readKernelLog()) ?? tscFromCpuInfo(readText("/proc/cpuinfo"), readNominalMhz());
}

/** From the lines of arch/x86/kernel/tsc.c: "Refined TSC clocksource calibration" is later and finer than "Detected". */
export function tscFromKernelLog(log: string): number | undefined {
  const refined = /tsc: Refined TSC clocksource calibration: (\d+)\.(\d{3}) MHz/.exec(log);
  const counter = /tsc: Detected (\d+)\.(\d{3}) MHz TSC/.exec(log); // logged when it differs from the processor's speed
  const processor = /tsc: Detected (\d+)\.(\d{3}) MHz processor/.exec(log);
  const match = refined ?? counter ?? processor;
  return match === null ? undefined : Number(match[1]) * 1000 + Number(match[2]);
}

export function tscFromCpuInfo(cpuInfo: string, nominalMhz: number | undefined): number | undefined {
  const soldAsGhz = /^model name\s*:.*@ (\d+\.\d+)GHz$/m.exec(cpuInfo)?.[1];
  if (soldAsGhz !== undefined) return Math.round(Number(soldAsGhz) * 1_000_000);
  if (nominalMhz !== undefined && nominalMhz > 0) return Math.round(nominalMhz * 1000);
  const momentaryMhz = /^cpu MHz\s*:\s*(\d+\.\d+)$/m.exec(cpuInfo)?.[1];
  return momentaryMhz === undefined ? undefined : Math.round(Number(momentaryMhz) * 1000);
}

/** AMD's nominal frequency, which its counter runs at (Linux: Documentation/admin-guide/acpi/cppc_sysfs.rst). */
function readNominalMhz(): number | undefined {
  const text = readText("/sys/devices/system/cpu/cpu0/acpi_cppc/nominal_freq").trim();
  return /^\d+$/.test(text) ? Number(text) : undefined;
}

function readText(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
}

/** The kernel's log buffer as far as this process may read it; each read(2) yields one record. */
function readKernelLog(): string {
  const records: string[] = [];
  let fd: number | undefined;
  try {
    fd = openSync("/dev/kmsg", constants.O_RDONLY | constants.O_NONBLOCK);
    const buffer = Buffer.allocUnsafe(8192);
    while (records.length < maxKernelLogRecords) {
      records.push(buffer.toString("latin1", 0, readSync(fd, buffer)));
    }
  } catch {
    // EAGAIN: the end of the log. Anything else: what was read so far has to do.
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
  return records.join("");
}
