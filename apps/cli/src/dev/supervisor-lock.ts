import { DatabaseSync } from "node:sqlite";

/**
 * One supervisor for each UNKEY_HOME. The lock is the kernel's (fcntl(2), through an exclusive transaction of SQLite,
 * the only such lock that Node offers): it ends with its process however that ends, so no stale file is ever judged.
 */
export function takeSupervisorLock(path: string): Disposable | undefined {
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

const sqliteBusy = 5;
