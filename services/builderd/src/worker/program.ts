import { spawn } from "node:child_process";
import { readdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { isErrno } from "@unkey/base";

const projectRoot = join(import.meta.dirname, "../../../..");

/** The worker, for Node. */
export const workerProgram: readonly string[] = [join(import.meta.dirname, "main.ts")];

/** All that the worker is made of. */
export const programFolders: readonly string[] = [
  join(projectRoot, "node_modules"),
  join(projectRoot, "packages"),
  join(projectRoot, "services/builderd"),
];

/**
 * Fills the directory with the worker's compiled modules, which halves the time that a worker takes to start, for processes of
 * those users. It starts the worker without a job; disposal ends that.
 */
export function fillCompileCache(directory: string, uids: readonly number[]): AsyncDisposable {
  // It dies with builderd, as workers do.
  const child = spawn("setpriv", ["--pdeathsig=KILL", "--", process.execPath, ...workerProgram], {
    env: { NODE_COMPILE_CACHE: directory, PATH: process.env["PATH"] ?? "" },
    stdio: ["ignore", "ignore", "ignore", "pipe"],
  });
  const ended = new Promise<void>((resolve) => {
    child.once("exit", () => resolve());
    child.once("error", () => resolve());
  });
  // Without it workers start more slowly, and nothing else changes.
  const filled = ended.then(() => shareCompileCache(directory, uids)).catch(() => undefined);
  child.stdio[3]?.on("error", () => undefined).destroy(); // no job: it ends when it has loaded
  return {
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await filled;
    },
  };
}

/** Node keeps each user's modules in a folder of its own, `<version>-<uid>`: the others' become links to ours. */
async function shareCompileCache(directory: string, uids: readonly number[]): Promise<void> {
  const own = `-${process.getuid?.() ?? 0}`;
  for (const folder of await readdir(directory)) {
    if (!folder.endsWith(own)) continue;
    for (const uid of uids) {
      await symlink(folder, join(directory, `${folder.slice(0, -own.length)}-${uid}`)).catch((error: unknown) => {
        if (!isErrno(error, "EEXIST")) throw error;
      });
    }
  }
}
