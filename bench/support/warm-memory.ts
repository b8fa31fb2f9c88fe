import { execFileSync } from "node:child_process";
import { closeSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gib, mib } from "@unkey/base";

/**
 * Touches so much free memory that what runs next finds it with the host: a guest whose free pages go back to its hypervisor pays
 * ten times the price of a write for each page that it takes again (0.13 or 1.4 s for 600 MiB of page cache where this was written), and
 * who is measured first pays it. On other machines it changes nothing. Then the disk gets all that was written so far, also by whoever was
 * measured before.
 */
export function warmMemory(bytes = 3 * gib): void {
  const path = join(tmpdir(), `unkey-bench-warm-${process.pid}`);
  const file = openSync(path, "wx", 0o600);
  try {
    const zeros = Buffer.alloc(mib);
    for (let written = 0; written < bytes; written += mib) writeSync(file, zeros);
  } finally {
    closeSync(file);
    rmSync(path);
  }
  execFileSync("sync");
}
