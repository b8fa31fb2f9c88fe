import { closeSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { dirname } from "node:path";

/**
 * Writes `path` so that only its owner reads it and a reader sees the old content or the new, never a part. A durable
 * one survives the host's crash too, which costs a wait for the disk.
 */
export function writePrivateFile(path: string, content: string, options: { readonly durable: boolean }): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.${process.pid}.tmp`;
  rmSync(temporary, { force: true }); // left by a process that died under the same pid
  const fd = openSync(temporary, "wx", 0o600);
  try {
    writeSync(fd, content);
    if (options.durable) fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, path);
}
