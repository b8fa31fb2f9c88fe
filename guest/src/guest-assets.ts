import { createHash } from "node:crypto";
import { mkdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { ServiceError } from "@unkey/base";
import { writeInitramfs } from "./initramfs.ts";
import { ensureKernel, writeAtomically } from "./kernel.ts";

export interface GuestAssets {
  readonly kernelPath: string;
  readonly initrdPath: string;
  /** As `uname -r` prints it in the guest. */
  readonly kernelVersion: string;
}

export interface GuestAssetsOptions {
  /** Made if missing; shared by any number of processes. Its content may be deleted while no VM runs. */
  readonly cacheDir: string;
  /** Told about steps that take seconds. */
  readonly log?: (message: string) => void;
  readonly signal: AbortSignal;
}

const busyboxPaths = ["/usr/bin/busybox", "/bin/busybox"];

/**
 * Kernel and initramfs for our guests, fetched and built where the cache lacks them; a second call does no work beyond
 * hashing. Throws GUEST_ASSETS_UNAVAILABLE with the command that would help.
 */
export async function ensureGuestAssets({ cacheDir, log, signal }: GuestAssetsOptions): Promise<GuestAssets> {
  const busybox = await readBusybox();
  const kernel = await ensureKernel({ cacheDir, log: log ?? (() => undefined) }, signal);
  const initrd = writeInitramfs({ busybox, modules: kernel.modules });
  const initrdDir = join(cacheDir, "initrd");
  await mkdir(initrdDir, { recursive: true });
  const initrdPath = join(initrdDir, `${createHash("sha256").update(initrd).digest("hex")}.cpio`);
  const present = await stat(initrdPath).catch(() => undefined);
  if (present?.size !== initrd.length) await writeAtomically(initrdPath, initrd);
  return { kernelPath: kernel.path, initrdPath, kernelVersion: kernel.release };
}

async function readBusybox(): Promise<Uint8Array> {
  for (const path of busyboxPaths) {
    const content = await readFile(path).catch(() => undefined);
    if (content !== undefined && isStaticElf(content)) return content;
  }
  throw new ServiceError(
    "GUEST_ASSETS_UNAVAILABLE",
    'there is no statically linked busybox on this host: run "apt-get install busybox-static"',
  );
}

/** True for a 64-bit little-endian ELF file that names no interpreter (elf(5): no PT_INTERP segment). */
export function isStaticElf(file: Buffer): boolean {
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1) return false;
  const headersAt = Number(file.readBigUInt64LE(32));
  const headerBytes = file.readUInt16LE(54);
  const headerCount = file.readUInt16LE(56);
  for (let i = 0; i < headerCount; i++) {
    const at = headersAt + i * headerBytes;
    if (at + 4 > file.length) return false;
    const ptInterp = 3;
    if (file.readUInt32LE(at) === ptInterp) return false;
  }
  return headerCount > 0;
}
