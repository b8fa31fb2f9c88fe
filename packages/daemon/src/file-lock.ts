import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import type { ServiceName } from "./daemon.ts";

const sqliteBusy = 5;

/**
 * The lock of a file, until it is disposed; undefined while somebody has it, in this process too. It is the kernel's (fcntl(2),
 * through an exclusive transaction of SQLite, the only such lock that Node offers): it ends with its process however that
 * ends, so no stale file is ever judged. The file stays, empty. Throws what opening it throws.
 */
export function takeFileLock(path: string): Disposable | undefined {
  const database = new DatabaseSync(path, { timeout: 0 });
  try {
    database.exec("BEGIN EXCLUSIVE");
  } catch (error) {
    database.close();
    if ((error as { errcode?: number }).errcode === sqliteBusy) return undefined;
    throw error;
  }
  return { [Symbol.dispose]: () => database.close() };
}

/**
 * Keeps other daemons out of a data directory, which is made with mode 0700 when it is missing. Two of them would end each other's
 * processes and empty each other's folders. Throws while another has it: that one may be about to stop, so a later
 * start may succeed.
 */
export function lockDataDir(service: ServiceName, dataDir: string): Disposable {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const lock = takeFileLock(join(dataDir, "lock"));
  if (lock === undefined) {
    const setting = `UNKEY_${service.toUpperCase().replaceAll("-", "_")}_DATA_DIR`;
    throw new Error(`another daemon uses ${dataDir}: stop it, or set ${setting} to a directory of this one's own`);
  }
  return lock;
}
