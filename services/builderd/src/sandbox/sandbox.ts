import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { chown, lstat, mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Duplex, Readable, Writable } from "node:stream";
import { LinuxCgroups } from "@unkey/cgroup";
import type { Layer } from "@unkey/daemon";
import { type Confinement, directoryInside, launchCommand, mountTable, type ProcessLimits } from "./launch.ts";
import { endProcessesOf, UidSlots } from "./uid-slots.ts";

export interface SandboxOptions {
  /** Tells this builderd's control groups from those of another one on the host. */
  readonly instanceId: string;
  /** Existing private directory for mount points and mount tables. */
  readonly directory: string;
  /** Folders that programs are made of; seen read-only. */
  readonly programFolders: readonly string[];
  readonly firstUid: number;
  /** Processes that run at once. */
  readonly maxRunning: number;
  /** What is tried, the strongest first; for tests of what weaker hosts get. */
  readonly confinements?: readonly Confinement[];
}

export interface ProcessOptions {
  /** Unique among those that run; a cgroup is called so. */
  readonly name: string;
  readonly program: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** Its own; `in` is made when it is missing, `out` must not exist. */
  readonly directory: string;
  readonly limits: ProcessLimits & {
    readonly memoryBytes: number;
    readonly cpuCount: number;
  };
}

export interface ProcessEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly outOfMemory: boolean;
}

/** Disposal kills it and all that it started, and returns when they are gone; its directory stays. */
export interface SandboxedProcess extends AsyncDisposable {
  readonly pid: number;
  readonly input: Writable;
  /** File descriptor 3 of the process. */
  readonly control: Duplex;
  /** Where the process finds its directory; relative paths lead there too. */
  readonly directoryInside: string;
  /** The end of what it said on standard error. Untrusted text. */
  readonly words: () => string;
  /** Resolves when it and all that it started are gone. */
  readonly ended: Promise<ProcessEnd>;
  readonly kill: () => void;
}

const maxWords = 4096;
/** Of the tools that confine; a program started by a hostile process has no other either. */
const toolPath = "/usr/sbin:/usr/bin:/sbin:/bin";
const probeTimeoutMs = 20_000;

/** Runs programs that will read hostile bytes. How well they are confined depends on the host, and `layers` says it. */
export class Sandbox implements AsyncDisposable {
  readonly layers: Readonly<Record<string, Layer>>;
  /** Whom programs may run as. */
  readonly uids: readonly number[];
  readonly #options: SandboxOptions;
  readonly #confinement: Confinement;
  readonly #cgroups: LinuxCgroups;
  readonly #uids: UidSlots;
  readonly #systemFolders: readonly string[];
  readonly #running = new Set<AsyncDisposable>();
  /** Processes that are being started, run, or end. */
  #busy = 0;
  /** The end of the last clean-up. */
  #idle: Promise<void> = Promise.resolve();

  private constructor(
    options: SandboxOptions,
    host: {
      readonly confinement: Confinement;
      readonly detail: string;
      readonly cgroups: LinuxCgroups;
      readonly systemFolders: readonly string[];
    },
  ) {
    const { confinement, detail, cgroups } = host;
    this.#options = options;
    this.#confinement = confinement;
    this.#cgroups = cgroups;
    this.#uids = new UidSlots(options.firstUid, options.maxRunning);
    this.uids = this.#uids.all;
    this.#systemFolders = host.systemFolders;
    const { firstUid, maxRunning } = options;
    this.layers = {
      "build-user": {
        active: confinement !== "none",
        detail: confinement === "none" ? detail : `one of ${maxRunning} from ${firstUid}, without capabilities`,
      },
      "build-namespaces": {
        active: confinement === "namespaces",
        detail: confinement === "namespaces" ? "mount, net, ipc, uts, pid; a root of its own" : detail,
      },
      "build-cgroup": { active: cgroups.active, detail: cgroups.detail },
    };
  }

  /** Looks at what the host allows, and ends what an earlier process of this instance left running. */
  static async open(options: SandboxOptions): Promise<Sandbox> {
    const cgroups = await LinuxCgroups.open(`unkey-builder-${options.instanceId}`);
    for (const name of await cgroups.present()) {
      await cgroups.kill(name);
      await cgroups.remove(name);
    }
    await rm(options.directory, { recursive: true, force: true });
    await mkdir(join(options.directory, "root"), { recursive: true, mode: 0o700 });
    const systemFolders = await foldersOfTheSystem();
    if (process.getuid?.() !== 0) {
      return new Sandbox(options, { confinement: "none", detail: "needs root", cgroups, systemFolders });
    }
    let detail = "";
    for (const confinement of options.confinements ?? (["namespaces", "user"] as const)) {
      const sandbox = new Sandbox(options, { confinement, detail, cgroups, systemFolders });
      const problem = await sandbox.#probe();
      if (problem === undefined) return sandbox;
      detail ||= `the host refuses: ${problem}`;
    }
    throw new Error(`no process can be started as another user: ${detail}`);
  }

  async start(options: ProcessOptions): Promise<SandboxedProcess> {
    const { name, program, env, directory, limits } = options;
    this.#busy++;
    await using undo = new AsyncDisposableStack();
    undo.defer(() => this.#rest());
    await this.#idle;
    const isRoot = this.#confinement !== "none";
    const uid = undo.adopt(this.#uids.take(), (taken) => this.#uids.giveBack(taken));
    await mkdir(join(directory, "in"), { recursive: true, mode: 0o755 });
    await mkdir(join(directory, "out"), { mode: 0o700 });
    if (isRoot) await chown(join(directory, "out"), uid, uid);
    const plan = {
      confinement: this.#confinement,
      cgroupProcsPaths: this.#cgroups.procsPaths(name),
      limits,
      uid,
      directory,
      mountPoint: join(this.#options.directory, "root"),
      mountTablePath: join(this.#options.directory, `${name}.fstab`),
    };
    if (this.#confinement === "namespaces") {
      undo.defer(() => rm(plan.mountTablePath, { force: true }));
      const table = mountTable(plan, this.#options.programFolders, this.#systemFolders);
      await writeFile(plan.mountTablePath, table, { mode: 0o600 });
    }
    undo.defer(() => this.#cgroups.remove(name));
    const { memoryBytes, cpuCount, processes } = limits;
    await this.#cgroups.ensure(name, { memoryBytes, cpuCount, maxProcesses: processes });

    const [command, ...args] = launchCommand(program, plan);
    const child = spawn(command, args, {
      cwd: directory,
      env: { ...env, PATH: toolPath },
      stdio: ["pipe", "ignore", "pipe", "pipe"],
    });
    const started = this.#processOf(child, name, uid, undo.move());
    this.#running.add(started);
    void started.ended.finally(() => this.#running.delete(started));
    await new Promise<void>((resolve, reject) => child.once("spawn", resolve).once("error", reject));
    return started;
  }

  /** Ends everything that runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#running].map((one) => one[Symbol.asyncDispose]()));
    await this.#cgroups.close();
  }

  /** Nothing of ours stays on the host while nothing runs: a builderd that is killed then leaves nothing. */
  async #rest(): Promise<void> {
    if (--this.#busy > 0) return;
    this.#idle = this.#cgroups.close();
    await this.#idle;
  }

  #processOf(child: ChildProcess, name: string, uid: number, undo: AsyncDisposableStack): SandboxedProcess {
    const [input, , errors, control] = child.stdio as unknown as [Writable, null, Readable, Duplex];
    let words = "";
    errors.setEncoding("utf8").on("data", (text: string) => {
      words = (words + text).slice(-maxWords);
    });
    // A process that ends early breaks its pipes; what that means is read from its end.
    for (const stream of [input, errors, control]) stream.on("error", () => undefined);
    const ended = (async (): Promise<ProcessEnd> => {
      const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
        child.once("exit", (...end) => resolve(end));
        child.once("error", () => child.pid === undefined && resolve([null, null]));
      });
      await this.#cgroups.kill(name); // what it started, where it had no pid namespace to take with it
      // Nor a cgroup: a process that stayed would have its files open, and the next one's user. Its uid is not given back then.
      if (this.#confinement === "user") await endProcessesOf(uid);
      const outOfMemory = await this.#cgroups.outOfMemory(name);
      await undo.disposeAsync();
      return { code, signal, outOfMemory };
    })();
    ended.catch(() => undefined); // told to whoever awaits it
    const kill = (): void => killWithin(child);
    return {
      pid: child.pid ?? 0,
      input,
      control,
      directoryInside: this.#confinement === "namespaces" ? directoryInside : ".",
      words: () => words,
      ended,
      kill,
      [Symbol.asyncDispose]: async () => {
        kill();
        await ended;
      },
    };
  }

  /** What is in the way of starting this very Node under the sandbox's confinement; undefined when nothing is. */
  async #probe(): Promise<string | undefined> {
    const directory = join(this.#options.directory, "probe");
    try {
      await mkdir(directory, { mode: 0o755 });
      const probe = await this.start({
        name: "probe",
        program: [process.execPath, "--version"],
        env: {},
        directory,
        limits: { memoryBytes: 2 ** 28, cpuCount: 1, processes: 64, fileBytes: 0, openFiles: 64 },
      });
      const timer = setTimeout(probe.kill, probeTimeoutMs);
      const { code, signal } = await probe.ended;
      clearTimeout(timer);
      return code === 0 ? undefined : probe.words().trim() || `ended with ${signal ?? code}`;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }
}

/**
 * Kills what `unshare` waits for, so that it reaps that and ends itself: killed first, it would leave a dead process to the host's
 * init. Before there is any, the process itself.
 */
function killWithin(child: ChildProcess): void {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  let inner: string[] = [];
  try {
    inner = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
  } catch {
    // gone, or a kernel that does not tell
  }
  const pids = inner.map(Number).filter((pid) => pid > 1);
  if (pids.length === 0) child.kill("SIGKILL");
  for (const pid of pids) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      child.kill("SIGKILL");
    }
  }
}

/** Folders with the host's programs and libraries. A link between them is made anew in the private root. */
async function foldersOfTheSystem(): Promise<string[]> {
  const candidates = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    dirname(process.execPath),
  ];
  const found = await Promise.all(
    candidates.map(async (path) => ((await lstat(path).catch(() => undefined))?.isDirectory() === true ? path : "")),
  );
  const folders = found.filter((path) => path !== "");
  return folders.filter((path) => !folders.some((other) => other !== path && path.startsWith(`${other}/`)));
}
