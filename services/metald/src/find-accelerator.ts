import { readFile, stat } from "node:fs/promises";
import type { Logger } from "@unkey/daemon";
import type { Hypervisor, ProbeResult } from "@unkey/vmm";
import type { Disks, VmStore } from "./ports.ts";

const probeFact = "probe";
const programPaths = ["/usr/local/bin", "/usr/bin"].map((dir) => `${dir}/qemu-system-x86_64`);
const probeTimeoutMs = 60_000;

export interface FindAcceleratorDeps {
  readonly hypervisor: Hypervisor;
  readonly store: Pick<VmStore, "fact" | "setFact">;
  readonly disks: Disks;
  readonly probeDir: string;
  readonly log: Logger;
}

/** How guests run here, by a trial boot; remembered for as long as kernel, hypervisor program and the host's boot are the same. */
export async function findAccelerator(
  deps: FindAcceleratorDeps,
  guest: { readonly kernelPath: string; readonly initrdPath: string },
  signal: AbortSignal,
): Promise<ProbeResult> {
  const { hypervisor, store, disks, probeDir, log } = deps;
  const bootId = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
  const files = await Promise.all([guest.kernelPath, guest.initrdPath, ...programPaths].map(versionOf));
  const key = [hypervisor.name, bootId, ...files].join(" ");
  const known = await store.fact(probeFact);
  if (known !== undefined) {
    const { key: knownKey, result } = JSON.parse(known) as { key: string; result: ProbeResult };
    if (knownKey === key) return result;
  }
  await disks.remove(probeDir);
  await disks.ensureDir(probeDir, 0o700);
  const result = await hypervisor.probe(
    { dir: probeDir, ...guest },
    AbortSignal.any([signal, AbortSignal.timeout(probeTimeoutMs)]),
  );
  await disks.remove(probeDir);
  await store.setFact(probeFact, JSON.stringify({ key, result }));
  log.info("hypervisor tried", { hypervisor: hypervisor.name, ...result });
  return result;
}

async function versionOf(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  return found ? `${path}:${found.size}:${Math.floor(found.mtimeMs)}` : `${path}:none`;
}
