import { chmod, chown, mkdir, open, rename, rm, stat } from "node:fs/promises";
import { ServiceError } from "@unkey/base";
import type { DiskOwner, Disks } from "../ports.ts";
import { CommandFailed, runCommand } from "./run-command.ts";

/** The private files of VMs. Each appears under its final name only when it is complete, so a repeat trusts what it finds. */
export class VmDisks implements Disks {
  readonly #format: boolean;

  /** Without `format` a layer is an empty file: where no guest will mount it. */
  constructor(options: { readonly format: boolean } = { format: true }) {
    this.#format = options.format;
  }

  async ensureLayer(path: string, sizeBytes: number, owner: DiskOwner): Promise<void> {
    if (!(await exists(path))) {
      const unfinished = `${path}.new`;
      await writeNew(unfinished, async (file) => file.truncate(sizeBytes));
      if (this.#format) await format(unfinished);
      await rename(unfinished, path);
    }
    await give(path, 0o600, owner);
  }

  async writeConfig(path: string, content: Uint8Array, owner: DiskOwner): Promise<void> {
    const unfinished = `${path}.new`;
    await writeNew(unfinished, async (file) => file.writeFile(content));
    await give(unfinished, 0o400, owner);
    await rename(unfinished, path);
  }

  async ensureDir(path: string, mode: number, owner?: DiskOwner): Promise<void> {
    await mkdir(path, { recursive: true, mode: 0o700 });
    await give(path, mode, owner);
  }

  async remove(path: string): Promise<void> {
    await rm(path, { recursive: true, force: true });
  }
}

async function format(path: string): Promise<void> {
  // No journal: after a crash of the host the layer is checked or thrown away, and every guest write would cost two.
  const args = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"];
  try {
    await runCommand("mke2fs", [...args, path]);
  } catch (error) {
    const full = error instanceof CommandFailed && error.stderr.includes("No space left");
    throw full ? diskFull(error) : error;
  }
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

/** Secrets may be written: nobody but root reads the file before it is given away. */
async function writeNew(path: string, write: (file: Awaited<ReturnType<typeof open>>) => Promise<void>): Promise<void> {
  await rm(path, { force: true });
  await using file = await open(path, "wx", 0o600);
  try {
    await write(file);
  } catch (error) {
    throw (error as NodeJS.ErrnoException).code === "ENOSPC" ? diskFull(error) : error;
  }
}

async function give(path: string, mode: number, owner: DiskOwner | undefined): Promise<void> {
  await chmod(path, mode);
  if (owner) await chown(path, owner.uid, owner.gid);
}

function diskFull(cause: unknown): ServiceError {
  return new ServiceError("HOST_DISK_FULL", "the host's disk has no room for the VM's files", { cause });
}
