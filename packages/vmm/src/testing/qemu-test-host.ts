import { execFileSync } from "node:child_process";
import { accessSync, constants, statSync, truncateSync, writeFileSync } from "node:fs";
import { chmod, copyFile, cp, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gib, mib } from "@unkey/base";
import { ensureGuestAssets, type GuestApp, type GuestSpec, renderGuestConfig } from "@unkey/guest";
import type { AppBehaviour, HypervisorFixture } from "../hypervisor.contract.ts";
import type { VmSpec } from "../hypervisor.ts";
import { QemuHypervisor } from "../qemu-hypervisor.ts";
import { splitErofs } from "./split-erofs.ts";

/** Kept between runs: the kernel is a download. */
const cacheDir = fileURLToPath(new URL("../../../../node_modules/.cache/unkey-guest", import.meta.url));
const programs = [
  "qemu-system-x86_64",
  "mkfs.erofs",
  "mkfs.ext4",
  "busybox",
  "apt-get",
  "dpkg-deb",
  "prlimit",
  "setpriv",
];

/** Why real guests cannot be booted on this host, undefined when they can. */
export function qemuSkipReason(): string | undefined {
  if (process.arch !== "x64") return `guests are x86-64 and this host is ${process.arch}`;
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  const missing = programs.filter((program) => !folders.some((folder) => isExecutable(join(folder, program))));
  return missing.length === 0 ? undefined : `missing on this host: ${missing.join(", ")}`;
}

export interface QemuFixture extends HypervisorFixture {
  readonly hypervisor: QemuHypervisor;
  /** A spec whose app runs `script` in busybox's shell; the image itself holds one static binary and nothing else. */
  newShellSpec(script: string, app?: Partial<GuestApp>, guest?: Partial<GuestSpec>): Promise<VmSpec>;
  /** The same image with more files, as so many parts. */
  newBaseInParts(
    partCount: number,
    files?: Readonly<Record<string, Uint8Array>>,
  ): Promise<Pick<VmSpec["drives"], "basePath" | "basePartPaths">>;
}

export async function openQemuFixture(): Promise<QemuFixture> {
  const signal = AbortSignal.timeout(300_000);
  const assets = await ensureGuestAssets({ cacheDir, signal });
  const root = await mkdtemp(join(tmpdir(), "vmm-"));
  const basePath = join(root, "base.erofs");
  const tree = join(root, "tree");
  await mkdir(join(tree, "only"), { recursive: true });
  await copyFile("/usr/bin/busybox", join(tree, "only/busybox"));
  execFileSync("mkfs.erofs", ["--quiet", "--all-root", basePath, tree], { stdio: "ignore" });

  const newBaseInParts: QemuFixture["newBaseInParts"] = async (partCount, files = {}) => {
    const dir = await mkdtemp(join(root, "parts-"));
    await chmod(dir, 0o711);
    const image = join(dir, "base.erofs");
    await cp(tree, join(dir, "tree"), { recursive: true });
    for (const [name, content] of Object.entries(files)) writeFileSync(join(dir, "tree", name), content);
    // Without a tail a file's inode stands with the others at the image's start, and all behind it is content.
    const busybox = join(dir, "tree/only/busybox");
    truncateSync(busybox, Math.ceil(statSync(busybox).size / 4096) * 4096);
    execFileSync("mkfs.erofs", ["--quiet", "--all-root", image, join(dir, "tree")], { stdio: "ignore" });
    return { basePath: image, basePartPaths: splitErofs(image, partCount) };
  };

  const newShellSpec: QemuFixture["newShellSpec"] = async (script, app = {}, guest = {}) => {
    const dir = await mkdtemp(join(root, "vm-"));
    const upperPath = join(dir, "upper.ext4");
    writeFileSync(upperPath, "");
    truncateSync(upperPath, gib);
    const options = ["-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
    execFileSync("mkfs.ext4", [...options, upperPath], { env: { PATH: "/usr/sbin:/sbin:/usr/bin:/bin" } });
    const configPath = join(dir, "config.tar");
    const config = renderGuestConfig({
      hostname: "guest",
      ...guest,
      app: {
        argv: ["/only/busybox", "sh", "-c", script],
        env: [],
        workingDir: "/",
        user: { uid: 0, gid: 0 },
        stopSignal: 15,
        ...app,
      },
    });
    writeFileSync(configPath, config, { mode: 0o600 });
    return {
      name: "vm-under-test",
      dir,
      kernelPath: assets.kernelPath,
      initrdPath: assets.initrdPath,
      vcpuCount: 1,
      memoryBytes: 256 * mib,
      accelerator: "tcg",
      drives: { basePath, basePartPaths: [], upperPath, configPath },
    };
  };
  return {
    hypervisor: new QemuHypervisor(),
    newShellSpec,
    newBaseInParts,
    newSpec: (app) =>
      app.kind === "does not exist" ? newShellSpec("", { argv: ["nonesuch"] }) : newShellSpec(scriptOf(app)),
    [Symbol.asyncDispose]: () => rm(root, { recursive: true }),
  };
}

function scriptOf(app: Exclude<AppBehaviour, { kind: "does not exist" }>): string {
  switch (app.kind) {
    case "runs":
      return `trap '${app.onStop === "ignores it" ? "" : "exit 0"}' TERM; echo up; while :; do sleep 1 & wait; done`;
    case "exits":
      return `exit ${app.code}`;
    case "dies":
      return `kill -${app.signal} $$`;
  }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
