import { spawn } from "node:child_process";
import { chmod, readdir, symlink } from "node:fs/promises";
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

const rightsFlags = ["--no-addons", "--disable-proto=throw", "--disallow-code-generation-from-strings"];

/** Flags of Node for each kind of job, but for the bound of its heap. */
export const workerFlags = {
  /**
   * Garbage is short-lived buffers: a larger nursery only holds more of it. Layers are unpacked side by side: what helping threads of V8
   * do is taken from the others.
   */
  unpack: [...rightsFlags, "--max-semi-space-size=1", "--single-threaded"],
  /**
   * A tree is made that lives to the end, and mostly nothing else runs: sizes in MiB that spare copying and marking it, helped by threads. It
   * is over before what V8's last compiler makes pays for its making (a sixth of the time of a processor).
   */
  assemble: [
    ...rightsFlags,
    "--min-semi-space-size=16",
    "--max-semi-space-size=16",
    "--initial-old-space-size=96",
    "--no-turbofan",
  ],
} as const;

export interface CompileCacheFilling extends AsyncDisposable {
  /** Resolves when it is done or given up. */
  readonly filled: Promise<void>;
}

/**
 * Fills the directory with the worker's compiled modules, which takes most of the time off a worker's start, for processes of
 * those users. It starts the worker without a job, with each set of flags: V8 takes no code that was compiled under others.
 * Disposal ends that.
 */
export function fillCompileCache(directory: string, uids: readonly number[]): CompileCacheFilling {
  const ended = new AbortController();
  // Without it workers start more slowly, and nothing else changes.
  const filled = (async () => {
    for (const flags of Object.values(workerFlags)) await loadWorker(flags, directory, ended.signal);
    await shareCompileCache(directory, uids);
  })().catch(() => undefined);
  return {
    filled,
    [Symbol.asyncDispose]: async () => {
      ended.abort();
      await filled;
    },
  };
}

async function loadWorker(flags: readonly string[], compileCache: string, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  // It dies with builderd, as workers do.
  const child = spawn("setpriv", ["--pdeathsig=KILL", "--", process.execPath, ...flags, ...workerProgram], {
    env: { NODE_COMPILE_CACHE: compileCache, PATH: process.env["PATH"] ?? "" },
    stdio: ["ignore", "ignore", "ignore", "pipe"],
    signal,
    killSignal: "SIGKILL",
  });
  child.stdio[3]?.on("error", () => undefined).destroy(); // no job: it ends when it has loaded
  await new Promise<void>((resolve, reject) => child.once("exit", () => resolve()).once("error", reject));
}

/** Node keeps each user's modules in a folder of its own, `<version>-<uid>`, for that user alone: the others' become links to ours. */
async function shareCompileCache(directory: string, uids: readonly number[]): Promise<void> {
  const own = `-${process.getuid?.() ?? 0}`;
  for (const folder of await readdir(directory)) {
    if (!folder.endsWith(own)) continue;
    for (const file of await readdir(join(directory, folder))) await chmod(join(directory, folder, file), 0o644);
    for (const uid of uids) {
      await symlink(folder, join(directory, `${folder.slice(0, -own.length)}-${uid}`)).catch((error: unknown) => {
        if (!isErrno(error, "EEXIST")) throw error;
      });
    }
  }
}
