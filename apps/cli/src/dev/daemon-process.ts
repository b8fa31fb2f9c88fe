import { type ChildProcess, spawn } from "node:child_process";
import { closeSync } from "node:fs";
import type { Clock } from "@unkey/base";
import { openLog } from "./log-file.ts";
import { findProcesses, isAlive, type ProcessIdentity, processByPid, signalProcess } from "./process-table.ts";

/** A daemon's process, whether this supervisor started it or an earlier one. */
export interface DaemonProcess {
  readonly identity: ProcessIdentity;
  readonly adopted: boolean;
  /** Resolves with how it ended, in a few words, and its exit code where that is known. */
  readonly ended: Promise<DaemonEnd>;
}

export interface DaemonEnd {
  readonly how: string;
  readonly code?: number;
}

/** Marks a process as a daemon of this home; a child of a daemon inherits it, but has another command line. */
const homeVariable = "UNKEY_DEV_HOME";

/**
 * Six daemons share a host with its VMs. A daemon hardly allocates, so a small nursery costs it nothing that was measured, and
 * one malloc arena saves what each thread would keep: 873 MiB together after a first start, 1,055 without either.
 */
const nurseryMib = 2;
/** Daemons that do allocate. */
const nurseriesMib: Readonly<Record<string, number>> = {
  builderd: 1, // twice as large, buffers of sockets wait so long to be freed that V8 marks the whole heap for them: fetching takes twice the processor
  assetmanagerd: 4, // rows of a collection's slice do not outlive it: a sweep takes a quarter less time than with 1
};
export const frugalMalloc = { MALLOC_ARENA_MAX: "1" };

/** Flags of Node for the daemon of that name. */
export function frugalNode(name: string): string[] {
  return [`--max-semi-space-size=${nurseriesMib[name] ?? nurseryMib}`];
}

/** What a daemon may know of the user's environment: where programs, temporary files, proxies and authorities are. */
const inherited = [
  "PATH",
  "HOME",
  "LANG",
  "LC_ALL",
  "TZ",
  "TMPDIR",
  "NODE_EXTRA_CA_CERTS",
  "SSL_CERT_FILE",
  "HTTP_PROXY",
  "HTTPS_PROXY",
  "NO_PROXY",
  "http_proxy",
  "https_proxy",
  "no_proxy",
];

export interface SpawnOptions {
  readonly name: string;
  readonly main: string;
  readonly home: string;
  readonly compileCacheDir: string;
  readonly logFile: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly settings: Readonly<Record<string, string>>;
}

/**
 * Starts a daemon in a session of its own: Ctrl-C in the supervisor's terminal and the supervisor's death do not reach
 * it. It writes to its log by itself.
 */
export async function spawnDaemon(options: SpawnOptions): Promise<DaemonProcess> {
  const { name, main, home, compileCacheDir, logFile, env, settings } = options;
  const log = openLog(logFile);
  try {
    const child = spawn(process.execPath, [...frugalNode(name), main], {
      cwd: home,
      detached: true,
      stdio: ["ignore", log, log],
      env: {
        ...daemonEnvironment(env),
        ...frugalMalloc,
        ...settings,
        [homeVariable]: home,
        NODE_COMPILE_CACHE: compileCacheDir,
      },
    });
    const ended = endOf(child);
    const spawned = Promise.withResolvers<void>();
    child.once("spawn", spawned.resolve);
    child.once("error", spawned.reject);
    await spawned.promise;
    // It may have ended already; then no process has this start time and every later look says so.
    const identity = processByPid(child.pid ?? 0) ?? { pid: child.pid ?? 0, startTicks: "0" };
    return { identity, adopted: false, ended };
  } finally {
    closeSync(log);
  }
}

function daemonEnvironment(env: Readonly<Record<string, string | undefined>>): Record<string, string> {
  const known = inherited.flatMap((name) => (env[name] === undefined ? [] : [[name, env[name]] as const]));
  // mkfs.erofs, nft and others live where a plain user's PATH does not look.
  return { ...Object.fromEntries(known), PATH: [env["PATH"] ?? "/usr/bin:/bin", "/usr/sbin:/sbin"].join(":") };
}

function endOf(child: ChildProcess): Promise<DaemonEnd> {
  const ended = Promise.withResolvers<DaemonEnd>();
  child.once("exit", (code, signal) =>
    ended.resolve(code === null ? { how: `ended by ${signal}` } : { how: `exit code ${code}`, code }),
  );
  child.once("error", (error) => ended.resolve({ how: error.message }));
  return ended.promise;
}

/** The daemon of `home` that runs `main`, if one survived its supervisor. Were there several, the eldest counts. */
export function findDaemon(main: string, home: string): ProcessIdentity[] {
  return findProcesses(main, `${homeVariable}=${home}`).toSorted((a, b) =>
    Number(BigInt(a.startTicks) - BigInt(b.startTicks)),
  );
}

const adoptedPollMs = 250;

/** Takes a running daemon over. The kernel tells nobody but the parent of an end, so it is looked at. */
export function adoptDaemon(identity: ProcessIdentity, clock: Clock): DaemonProcess {
  const watch = async (): Promise<DaemonEnd> => {
    while (isAlive(identity)) await clock.sleep(adoptedPollMs);
    return { how: "ended, how is not known: it was started by an earlier supervisor" };
  };
  return { identity, adopted: true, ended: watch() };
}

/** A daemon cuts off what still runs at its grace deadline (10 s), then closes its files; longer means it hangs. */
const stopDeadlineMs = 20_000;

/** Asks a process to stop, and ends it when it does not. */
export async function stopProcess(identity: ProcessIdentity, clock: Clock): Promise<"stopped" | "killed"> {
  signalProcess(identity, "SIGTERM");
  const pollMs = 50;
  for (let waitedMs = 0; waitedMs < stopDeadlineMs; waitedMs += pollMs) {
    if (!isAlive(identity)) return "stopped";
    await clock.sleep(pollMs);
  }
  signalProcess(identity, "SIGKILL");
  while (isAlive(identity)) await clock.sleep(pollMs);
  return "killed";
}
