import { readFileSync } from "node:fs";
import { type CpioEntry, fileType, writeCpio } from "./cpio.ts";

export interface InitramfsParts {
  /** A statically linked busybox. */
  readonly busybox: Uint8Array;
  /** Content of each driver that the kernel does not have built in, in loading order. */
  readonly modules: ReadonlyMap<string, Uint8Array>;
}

/**
 * The guest's initramfs. It is not compressed: the guest would have to unpack it with an emulated processor, and that
 * takes longer than reading the larger file.
 */
export function writeInitramfs({ busybox, modules }: InitramfsParts): Buffer {
  const folders = ["bin", "dev", "etc", "modules", "proc", "root", "sys"];
  const entries: CpioEntry[] = [
    ...folders.map((path) => ({ path, mode: fileType.directory | 0o755 })),
    // Where stdin, stdout and stderr of init point before it mounts /dev (Linux: init/main.c, console_on_rootfs).
    { path: "dev/console", mode: fileType.characterDevice | 0o600, device: [5, 1] },
    { path: "bin/busybox", mode: fileType.file | 0o755, content: busybox },
    script("init", 0o755),
    ...["common", "fstab", "launch", "supervise"].map((path) => script(path, 0o600)),
    {
      path: "modules/order",
      mode: fileType.file | 0o600,
      content: Buffer.from([...modules.keys()].map((name) => `${name}\n`).join("")),
    },
    ...[...modules].map(([name, content]) => ({ path: `modules/${name}.ko`, mode: fileType.file | 0o600, content })),
  ];
  return writeCpio(entries);
}

function script(path: string, permissions: number): CpioEntry {
  const content = readFileSync(new URL(`../init/${path}`, import.meta.url));
  return { path, mode: fileType.file | permissions, content };
}
