import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { ServiceError } from "@unkey/base";
import { runCommand } from "./command.ts";
import { loadOrder } from "./kernel-modules.ts";

/** A Debian kernel, unpacked. */
export interface Kernel {
  readonly path: string;
  /** As `uname -r` prints it: "6.1.0-56-cloud-amd64". */
  readonly release: string;
  /** The drivers that our guests need, in loading order. */
  readonly modules: ReadonlyMap<string, Uint8Array>;
}

interface KernelPackage {
  readonly name: string;
  readonly version: string;
  /** Lower-case hex digest of the .deb, from apt's signed index. */
  readonly sha256: string;
}

interface KernelManifest {
  readonly release: string;
  readonly modules: readonly string[];
}

const wantedModules = ["virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "erofs", "overlay"];
const debianArchitectures: Readonly<Record<string, string>> = { x64: "amd64", arm64: "arm64" };
/** A preparation that takes longer was cut off; nobody will finish it. */
const abandonedAfterMs = 60 * 60 * 1000;

/**
 * The kernel in `cacheDir`, fetched with apt when there is none yet; nothing is installed. Kept by the digest of its
 * package, made in a folder of its own and moved into place, so several processes may do this at once.
 */
export async function ensureKernel(
  { cacheDir, log }: { readonly cacheDir: string; readonly log: (message: string) => void },
  signal: AbortSignal,
): Promise<Kernel> {
  const kernelsDir = join(cacheDir, "kernels");
  await mkdir(kernelsDir, { recursive: true });
  const current = await readCurrent(kernelsDir);
  if (current !== undefined) return current;
  await removeAbandoned(kernelsDir);
  const wanted = await findPackage(log, signal);
  const target = join(kernelsDir, wanted.sha256);
  const partial = await mkdtemp(join(kernelsDir, "partial-"));
  try {
    log(`fetching ${wanted.name} ${wanted.version}`);
    await fetchPackage(wanted, partial, signal);
    await chmod(partial, 0o755); // monitors read the kernel as users of their own
    await rename(partial, target).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error;
      await readKernel(target); // another process was first
    });
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
  await writeAtomically(join(kernelsDir, "current"), wanted.sha256);
  return readKernel(target);
}

/** Writes a small file so that a reader sees the old content or the new. */
export async function writeAtomically(path: string, content: string | Uint8Array): Promise<void> {
  const partial = `${path}.${process.pid}.${Math.random().toString(36).slice(2)}.partial`;
  try {
    await writeFile(partial, content, { mode: 0o644, flush: true });
    await rename(partial, path);
  } finally {
    await rm(partial, { force: true });
  }
}

async function readCurrent(kernelsDir: string): Promise<Kernel | undefined> {
  try {
    return await readKernel(join(kernelsDir, (await readFile(join(kernelsDir, "current"), "utf8")).trim()));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

async function readKernel(dir: string): Promise<Kernel> {
  const manifest = JSON.parse(await readFile(join(dir, "manifest.json"), "utf8")) as KernelManifest;
  const modules = new Map<string, Uint8Array>();
  for (const name of manifest.modules) modules.set(name, await readFile(join(dir, "modules", `${name}.ko`)));
  return { path: join(dir, "vmlinuz"), release: manifest.release, modules };
}

/** The package that Debian's `linux-image-cloud-<arch>` stands for now, with the digest that apt vouches for. */
async function findPackage(log: (message: string) => void, signal: AbortSignal): Promise<KernelPackage> {
  const architecture = debianArchitectures[process.arch];
  if (architecture === undefined) unavailable(`there is no guest kernel for a host of architecture ${process.arch}`);
  const meta = `linux-image-cloud-${architecture}`;
  const name = (await dependencyOf(meta, signal)) ?? (await dependencyAfterUpdate(meta, log, signal));
  const { stdout } = await runCommand("apt-cache", ["show", "--no-all-versions", name], signal);
  const version = /^Version: (\S+)$/m.exec(stdout)?.[1];
  const sha256 = /^SHA256: ([0-9a-f]{64})$/m.exec(stdout)?.[1];
  if (version === undefined || sha256 === undefined) unavailable(`apt does not know version and digest of ${name}`);
  return { name, version, sha256 };
}

async function dependencyOf(meta: string, signal: AbortSignal): Promise<string | undefined> {
  const { code, stdout } = await runCommand("apt-cache", ["depends", "--important", meta], signal, { mayFail: true });
  return code === 0 ? /^\s*\|?Depends: (linux-image-\S+)$/m.exec(stdout)?.[1] : undefined;
}

async function dependencyAfterUpdate(
  meta: string,
  log: (message: string) => void,
  signal: AbortSignal,
): Promise<string> {
  if (process.getuid?.() !== 0) unavailable(`apt does not know ${meta}: run "sudo apt-get update"`);
  log(`apt does not know ${meta} yet: running apt-get update`);
  await runCommand("apt-get", ["update"], signal);
  const name = await dependencyOf(meta, signal);
  return name ?? unavailable(`apt does not know ${meta}: add a Debian mirror to the apt sources of this host`);
}

async function fetchPackage(wanted: KernelPackage, dir: string, signal: AbortSignal): Promise<void> {
  const downloadDir = join(dir, "download");
  const treeDir = join(dir, "tree");
  await mkdir(downloadDir);
  await runCommand("apt-get", ["download", `${wanted.name}=${wanted.version}`], signal, { cwd: downloadDir });
  const [file] = await readdir(downloadDir);
  if (file === undefined) unavailable(`apt-get downloaded nothing for ${wanted.name}`);
  const deb = join(downloadDir, file);
  const hash = createHash("sha256");
  await pipeline(createReadStream(deb), hash, { signal });
  const sha256 = hash.digest("hex");
  if (sha256 !== wanted.sha256) unavailable(`${file} has digest ${sha256}, apt's index says ${wanted.sha256}`);
  await runCommand("dpkg-deb", ["-x", deb, treeDir], signal);
  await keepNeeded(treeDir, dir, signal);
  await rm(downloadDir, { recursive: true });
  await rm(treeDir, { recursive: true });
}

/** Moves out of an unpacked package what a guest needs: vmlinuz, modules/ and a manifest. */
async function keepNeeded(treeDir: string, dir: string, signal: AbortSignal): Promise<void> {
  const image = (await readdir(join(treeDir, "boot"))).find((name) => name.startsWith("vmlinuz-"));
  if (image === undefined) unavailable("the kernel package contains no boot/vmlinuz-*");
  const release = image.slice("vmlinuz-".length);
  // Debian 13 moved /lib/modules under /usr.
  const roots = [join(treeDir, "lib/modules", release), join(treeDir, "usr/lib/modules", release)];
  const files = new Map<string, string>();
  for (const root of roots) {
    for (const path of await readdir(root, { recursive: true }).catch(() => [])) {
      const name = /([^/]+)\.ko(\.xz)?$/.exec(path)?.[1];
      if (name !== undefined) files.set(name.replaceAll("-", "_"), join(root, path));
    }
  }
  const contents = new Map<string, Uint8Array>();
  for (const [name, path] of files) {
    if (path.endsWith(".xz")) await runCommand("xz", ["-d", path], signal);
    contents.set(name, await readFile(path.replace(/\.xz$/, "")));
  }
  const modules = loadOrder(wantedModules, (name) => contents.get(name));
  await mkdir(join(dir, "modules"));
  for (const [name, content] of modules) await writeFile(join(dir, "modules", `${name}.ko`), content, { mode: 0o644 });
  await rename(join(treeDir, "boot", image), join(dir, "vmlinuz"));
  await chmod(join(dir, "vmlinuz"), 0o644);
  const manifest: KernelManifest = { release, modules: [...modules.keys()] };
  await writeFile(join(dir, "manifest.json"), JSON.stringify(manifest), { mode: 0o644 });
}

async function removeAbandoned(kernelsDir: string): Promise<void> {
  for (const name of await readdir(kernelsDir)) {
    if (!name.startsWith("partial-")) continue;
    const path = join(kernelsDir, name);
    const ageMs = Date.now() - ((await stat(path).catch(() => undefined))?.mtimeMs ?? Date.now());
    if (ageMs > abandonedAfterMs) await rm(path, { recursive: true, force: true });
  }
}

function unavailable(message: string): never {
  throw new ServiceError("GUEST_ASSETS_UNAVAILABLE", message);
}
