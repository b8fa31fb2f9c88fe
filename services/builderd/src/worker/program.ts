import { spawn } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";

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
 * Fills the directory with the worker's compiled modules, which halves the time that a worker takes to start. It starts the worker
 * without a job; disposal ends that.
 */
export async function fillCompileCache(directory: string): Promise<AsyncDisposable> {
  await mkdir(directory, { recursive: true, mode: 0o755 });
  // It dies with builderd, as workers do.
  const child = spawn("setpriv", ["--pdeathsig=KILL", "--", process.execPath, ...workerProgram], {
    env: { NODE_COMPILE_CACHE: directory, PATH: process.env["PATH"] ?? "" },
    stdio: ["ignore", "ignore", "ignore", "pipe"],
  });
  const ended = new Promise<void>((resolve) => {
    child.once("exit", () => resolve());
    child.once("error", () => resolve());
  });
  child.stdio[3]?.on("error", () => undefined).destroy(); // no job: it ends when it has loaded
  return {
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}
