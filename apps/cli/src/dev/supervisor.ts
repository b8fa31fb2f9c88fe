import { readFileSync } from "node:fs";
import type { Clock } from "@unkey/base";
import { CliFailure, failureOf } from "../failure.ts";
import { writePrivateFile } from "../private-file.ts";
import { findDaemon } from "./daemon-process.ts";
import type { DaemonSpec, PlatformSpec, Ports } from "./daemon-spec.ts";
import type { Home } from "./home.ts";
import { rotateLog } from "./log-file.ts";
import { listenersOn, processByPid } from "./process-table.ts";
import { type Failure, type PlatformStatus, type TaskStatus, writeStatus } from "./status-file.ts";
import { SupervisedDaemon } from "./supervised-daemon.ts";

export interface SupervisorOptions {
  readonly home: Home;
  readonly platform: PlatformSpec;
  /** `default`: the documented ports. `auto`: free ones, kept over restarts while they stay free. */
  readonly ports: "default" | "auto";
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly clock: Clock;
  /** Takes one line of what happened. */
  readonly log: (line: string) => void;
  readonly onStatus?: (status: PlatformStatus) => void;
}

const renewalCheckMs = 60_000;
const logCheckMs = 5000;

/**
 * Runs a platform's daemons. Its memory is what the kernel knows: a supervisor that was killed left its daemons
 * running, and the next one finds them. The caller holds the supervisor lock.
 */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #daemons: readonly SupervisedDaemon[];
  readonly #abort = new AbortController();
  readonly #startedAtMs: number;
  #tasks: readonly TaskStatus[];
  #phase: PlatformStatus["phase"] = "starting";
  #failure: Failure | undefined;
  #upkeep: NodeJS.Timeout[] = [];
  #stopped: Promise<void> | undefined;

  constructor(options: SupervisorOptions) {
    const { platform, clock } = options;
    this.#options = options;
    this.#startedAtMs = clock.nowMs();
    this.#tasks = platform.tasks.map(({ name }) => ({
      name,
      state: "waiting",
      startedAtMs: 0,
      endedAtMs: 0,
      detail: "",
    }));
    this.#daemons = platform.daemons.map(
      (spec) =>
        new SupervisedDaemon(spec, {
          ...options,
          portsFor: (daemon) => this.#portsFor(daemon),
          prepare: (daemon) => platform.renewIdentity(daemon.name),
          onChange: () => this.#changed(),
          onReady: (daemon, addresses) => {
            this.#rememberPorts(daemon, addresses);
            // Its address may be another than before.
            if (this.#phase === "running") this.#announce();
          },
        }),
    );
  }

  get status(): PlatformStatus {
    const failure = this.#failure === undefined ? {} : { failure: this.#failure };
    return {
      supervisor: processByPid(process.pid) ?? { pid: process.pid, startTicks: "0" },
      startedAtMs: this.#startedAtMs,
      phase: this.#phase,
      ...failure,
      tasks: this.#tasks,
      daemons: this.#daemons.map((daemon) => daemon.status),
    };
  }

  /** Brings everything up, each part when what it depends on is ready. What fails ends all that was begun. */
  async start(): Promise<void> {
    this.#changed();
    try {
      this.#checkPorts();
      const begun = new Map<string, Promise<void>>();
      const after = async (names: readonly string[], begin: () => Promise<void>) => {
        await Promise.all(names.map((name) => begun.get(name) ?? missing(name)));
        this.#abort.signal.throwIfAborted();
        await begin();
      };
      for (const task of this.#options.platform.tasks) begun.set(task.name, this.#runTask(task.name));
      for (const daemon of this.#daemons)
        begun.set(
          daemon.spec.name,
          after(daemon.spec.dependsOn, () => daemon.start()),
        );
      // The first failure is told at once; what else was begun fails for the same reason or is ended by stop().
      await Promise.all(begun.values());
    } catch (error) {
      if (this.#stopped !== undefined) return;
      await this.#fail(error);
      throw error;
    }
    this.#phase = "running";
    this.#announce();
    this.#changed();
    const { home, platform } = this.#options;
    this.#upkeep = [
      setInterval(() => this.#forEach("renewal", ({ name }) => platform.renewIdentity(name)), renewalCheckMs),
      setInterval(() => this.#forEach("log rotation", ({ name }) => void rotateLog(home.logFile(name))), logCheckMs),
    ];
  }

  /** Stops the daemons in reverse order: each when those that depend on it are gone. Calling it again joins the first. */
  stop(): Promise<void> {
    return (this.#stopped ??= this.#stopAll("stopping", "stopped"));
  }

  async #stopAll(during: PlatformStatus["phase"], after: PlatformStatus["phase"]): Promise<void> {
    this.#upkeep.forEach((timer) => clearInterval(timer));
    this.#phase = during;
    this.#abort.abort(new Error("the platform is stopping"));
    this.#changed();
    await inReverse(
      this.#daemons.map(({ spec }) => spec),
      async (spec) => {
        await this.#daemons.find((daemon) => daemon.spec === spec)?.stop();
      },
    );
    this.#phase = after;
    this.#changed();
  }

  async #fail(error: unknown): Promise<void> {
    const { message, nextStep, evidence, exitCode } = failureOf(error);
    this.#failure = { message, nextStep, evidence, exitCode };
    this.#options.log(`start failed: ${message}`);
    this.#stopped = this.#stopAll("starting", "failed");
    await this.#stopped;
  }

  async #runTask(name: string): Promise<void> {
    const { platform, clock } = this.#options;
    const spec = platform.tasks.find((task) => task.name === name);
    const set = (change: Partial<TaskStatus>) => {
      this.#tasks = this.#tasks.map((task) => (task.name === name ? { ...task, ...change } : task));
      this.#changed();
    };
    set({ state: "running", startedAtMs: clock.nowMs() });
    try {
      const detail = await spec?.run((progress) => set({ detail: progress }), this.#abort.signal);
      set({ state: "done", endedAtMs: clock.nowMs(), detail: detail ?? "" });
    } catch (error) {
      set({ state: this.#abort.signal.aborted ? "stopped" : "failed", endedAtMs: clock.nowMs() });
      throw error;
    }
  }

  /** With the documented ports, a port that somebody else has is told before anything is started. */
  #checkPorts(): void {
    if (this.#options.ports === "auto") return;
    const { home, platform } = this.#options;
    const mine = platform.daemons.filter(({ main }) => findDaemon(main, home.root).length === 0);
    const wanted = mine.flatMap(({ name, ports }) =>
      Object.entries(ports).map(([endpoint, port]) => ({ name, endpoint, port })),
    );
    const taken = listenersOn(wanted.map(({ port }) => port));
    if (taken.length === 0) return;
    const lines = taken.map(({ port, owner }) => {
      const use = wanted.find((entry) => entry.port === port);
      return `${port} (${use?.name} ${use?.endpoint}) is taken by ${owner ?? "a process of another user"}`;
    });
    throw new CliFailure(`port ${lines[0]}${lines.length > 1 ? `, and ${lines.length - 1} more` : ""}`, {
      nextStep: "Stop what listens there, or run `unkey dev up --ports auto`.",
      evidence: lines.length > 1 ? lines : [],
    });
  }

  #portsFor({ name, ports }: DaemonSpec): Ports {
    if (this.#options.ports === "default") return ports;
    const remembered = readPorts(this.#options.home)[name] ?? {};
    const taken = new Set(listenersOn(Object.values(remembered)).map(({ port }) => port));
    const usable = (port: number | undefined) => (port === undefined || taken.has(port) ? 0 : port);
    return Object.fromEntries(Object.keys(ports).map((endpoint) => [endpoint, usable(remembered[endpoint])]));
  }

  #rememberPorts({ name }: DaemonSpec, addresses: Readonly<Record<string, string>>): void {
    const { home } = this.#options;
    const ports = Object.entries(addresses).map(([endpoint, address]) => [endpoint, Number(address.split(":").at(-1))]);
    const all = { ...readPorts(home), [name]: Object.fromEntries(ports) as Ports };
    writePrivateFile(home.portsFile, JSON.stringify(all), { durable: false });
  }

  #announce(): void {
    this.#options.platform.announce(
      (name) => this.#daemons.find(({ spec }) => spec.name === name)?.status.addresses ?? {},
    );
  }

  #forEach(what: string, work: (daemon: DaemonSpec) => void): void {
    for (const { spec } of this.#daemons) {
      try {
        work(spec);
      } catch (error) {
        // The next round tries again; a certificate is renewed half its life before it ends.
        this.#options.log(`${what} for ${spec.name} failed: ${failureOf(error).message}`);
      }
    }
  }

  #changed(): void {
    const { status } = this;
    writeStatus(this.#options.home, status);
    this.#options.onStatus?.(status);
  }
}

function missing(name: string): never {
  throw new Error(`"${name}" is depended on and does not exist`);
}

function readPorts(home: Home): Readonly<Record<string, Ports>> {
  try {
    return JSON.parse(readFileSync(home.portsFile, "utf8")) as Record<string, Ports>;
  } catch {
    return {};
  }
}

/** Runs `stop` for each, after it is done for all that depend on it. */
export async function inReverse(
  specs: readonly DaemonSpec[],
  stop: (spec: DaemonSpec) => Promise<void>,
): Promise<void> {
  const done = new Map<string, Promise<void>>();
  // Specs name only earlier ones, so from the last to the first every dependent is already in the map.
  for (const spec of specs.toReversed()) {
    const dependents = specs.filter(({ dependsOn }) => dependsOn.includes(spec.name));
    done.set(
      spec.name,
      Promise.all(dependents.flatMap(({ name }) => done.get(name) ?? [])).then(() => stop(spec)),
    );
  }
  await Promise.all(done.values());
}
