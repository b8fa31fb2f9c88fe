import { execFileSync } from "node:child_process";
import { existsSync, globSync, readFileSync } from "node:fs";

const needed = ["qemu-system-x86_64", "mkfs.erofs", "mke2fs", "ip", "nft", "/bin/busybox"];

/** Why no real guest can be booted here, false when one can. */
export const skipReason: string | false = (() => {
  if (process.getuid?.() !== 0) return "needs root: boots real microVMs";
  const folders = ["", ...(process.env["PATH"] ?? "").split(":").map((folder) => `${folder}/`), "/usr/sbin/", "/sbin/"];
  const missing = needed.filter((program) => !folders.some((folder) => existsSync(folder + program)));
  return missing.length > 0 && `missing on this host: ${missing.join(", ")}`;
})();

/** Everything on this host that carries the name of the platform `instance`, or runs from `home`. */
export function leftovers(instance: string, home: string): string[] {
  const name = `unkey-${instance}`;
  const cgroups = globSync([`/sys/fs/cgroup/${name}*`, `/sys/fs/cgroup/*/${name}*`]);
  const lines = (program: string, args: string[]) => execFileSync(program, args, { encoding: "utf8" }).split("\n");
  const processes = globSync("/proc/[0-9]*/cmdline").filter((file) => readIfThere(file).includes(home));
  return [
    ...cgroups,
    ...lines("ip", ["netns", "list"]).filter((line) => line.startsWith(name)),
    ...lines("ip", ["-o", "link"]).filter((line) => line.includes(instance)),
    // A table is named for its subnet; the chains in it name the platform.
    ...lines("nft", ["list", "ruleset"]).filter((line) => line.includes(instance)),
    ...readFileSync("/proc/mounts", "utf8")
      .split("\n")
      .filter((line) => line.includes(name) || line.includes(home)),
    ...processes,
  ];
}

/** Processor time that the host counted for a VM's cgroup, microseconds. */
export function cgroupCpuTimeUs(instance: string, vmId: string): number {
  const v1 = globSync(`/sys/fs/cgroup/cpuacct*/unkey-${instance}/${vmId}/cpuacct.usage`)[0];
  if (v1 !== undefined) return Math.floor(Number(readFileSync(v1, "utf8")) / 1000);
  const v2 = globSync(`/sys/fs/cgroup/unkey-${instance}/${vmId}/cpu.stat`)[0];
  if (v2 === undefined) throw new Error(`no cgroup of ${vmId} counts processor time`);
  return Number(/usage_usec (\d+)/.exec(readFileSync(v2, "utf8"))?.[1]);
}

/** Bytes that the host counted at a VM's tap: what the tap received is what the guest sent. */
export function tapBytes(instance: string): { guestIn: number; guestOut: number } {
  const netns = execFileSync("ip", ["netns", "list"], { encoding: "utf8" })
    .split("\n")
    .map((line) => line.split(" ")[0] ?? "")
    .find((line) => line.startsWith(`unkey-${instance}-`));
  if (netns === undefined) throw new Error("the VM has no network namespace");
  const links = JSON.parse(execFileSync("ip", ["-n", netns, "-s", "-j", "link", "show"], { encoding: "utf8" })) as {
    ifname: string;
    link_type: string;
    stats64: { rx: { bytes: number }; tx: { bytes: number } };
  }[];
  const tap = links.find((link) => link.ifname.startsWith("tap"));
  if (!tap) throw new Error(`${netns} has no tap: ${links.map((link) => link.ifname).join(", ")}`);
  return { guestIn: tap.stats64.tx.bytes, guestOut: tap.stats64.rx.bytes };
}

/** A VM's drives in its hypervisor's order: the serial number, and the file behind it as the hypervisor names it. */
export function drivesOf(vmId: string): { readonly serial: string; readonly file: string }[] {
  const words = readIfThere(`/proc/${hypervisorPid(vmId)}/cmdline`).split("\0");
  return words.flatMap((word) => {
    const [, serial, file] = /^driver=file,node-name=([^,]+),filename=([^,]+)/.exec(word) ?? [];
    return serial === undefined || file === undefined ? [] : [{ serial, file }];
  });
}

/** The hypervisor process of a VM. */
export function hypervisorPid(vmId: string): number | undefined {
  const found = globSync("/proc/[0-9]*/cmdline").find((file) => {
    const words = readIfThere(file);
    return words.startsWith("qemu-system") && words.includes(vmId);
  });
  return found === undefined ? undefined : Number(found.split("/")[2]);
}

function readIfThere(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
