import { join } from "node:path";

/** The files of one VM. */
export interface VmPaths {
  /** Owned by root; everybody may pass through it, nobody else may list it. */
  readonly dir: string;
  readonly assetsDir: string;
  readonly kernel: string;
  readonly initrd: string;
  readonly rootfs: string;
  readonly layer: string;
  readonly config: string;
  /** The provenance that its root filesystem was believed for. */
  readonly provenance: string;
  /** The only folder that the VM's user can write: the hypervisor's sockets and logs. */
  readonly runDir: string;
}

/** The files of a root filesystem's parts, as assetmanagerd names them. */
export function partPaths({ rootfs }: VmPaths, count: number): string[] {
  return Array.from({ length: count }, (_, index) => `${rootfs}.${index + 1}`);
}

export function vmPaths(vmsDir: string, vmId: string): VmPaths {
  const dir = join(vmsDir, vmId);
  const assetsDir = join(dir, "assets");
  return {
    dir,
    assetsDir,
    kernel: join(assetsDir, "kernel"),
    initrd: join(assetsDir, "initrd"),
    rootfs: join(assetsDir, "rootfs"),
    layer: join(dir, "upper.ext4"),
    config: join(dir, "config.img"),
    provenance: join(dir, "provenance.json"),
    runDir: join(dir, "run"),
  };
}
