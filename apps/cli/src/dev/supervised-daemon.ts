import { backoffDelayMs, type Clock } from "@unkey/base";
import { configExitCode } from "@unkey/daemon";
import { CliFailure } from "../failure.ts";
import {
  adoptDaemon,
  type DaemonEnd,
  type DaemonProcess,
  findDaemon,
  spawnDaemon,
  stopProcess,
} from "./daemon-process.ts";
import type { DaemonSpec, Ports } from "./daemon-spec.ts";
import type { Home } from "./home.ts";
import { lastLines, logSize } from "./log-file.ts";
import { isAlive } from "./process-table.ts";
import { type Addresses, readAddresses, whyNotReady } from "./readiness.ts";
import type { DaemonStatus } from "./status-file.ts";

export interface DaemonLife {
  readonly home: Home;
  readonly clock: Clock;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Ports to ask for at a start. */
  readonly portsFor: (spec: DaemonSpec) => Ports;
  /** Runs before each start. */
  readonly prepare: (spec: DaemonSpec) => void;
  /** Told of each change of `status`. */
  readonly onChange: () => void;
  /** Told of each time that it became ready. */
  readonly onReady: (spec: DaemonSpec, addresses: Addresses) => void;
  /** One line for the supervisor's log. */
  readonly log: (line: string) => void;
}

const maxFirstStarts = 3;
const readyDeadlineMs = 120_000;
const readyPollMs = 100;
/** A daemon that ran so long had started well: its next end is a new trouble. */
const stableMs = 30_000;
const restartBackoff = { baseMs: 500, maxMs: 30_000 };

/**
 * One daemon from its first start to its stop: waiting → starting → ready; when it ends by itself → restarting →
 * starting, for ever but ever slower; failed when the first starts fail or its settings are refused.
 */
export class SupervisedDaemon {
  readonly spec: DaemonSpec;
  readonly #life: DaemonLife;
  readonly #stopping = new AbortController();
  #status: DaemonStatus;
  #process: DaemonProcess | undefined;
  #run: Promise<void> | undefined;

  constructor(spec: DaemonSpec, life: DaemonLife) {
    this.spec = spec;
    this.#life = life;
    this.#status = {
      name: spec.name,
      state: "waiting",
      adopted: false,
      startedAtMs: 0,
      readyAtMs: 0,
      restarts: 0,
      addresses: {},
    };
  }

  get status(): DaemonStatus {
    return this.#status;
  }

  /** Starts or adopts it; resolves when it is ready for the first time, rejects when it will not be. */
  start(): Promise<void> {
    const ready = Promise.withResolvers<void>();
    ready.promise.catch(() => undefined);
    this.#run ??= this.#live(ready).then(
      () => ready.reject(new Error(`${this.spec.name} was stopped`)),
      (error: unknown) => {
        this.#set({ state: "failed" });
        ready.reject(error);
      },
    );
    return ready.promise;
  }

  /** Ends it and its supervision. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    if (this.#process !== undefined) {
      this.#set({ state: "stopping" });
      if ((await stopProcess(this.#process.identity, this.#life.clock)) === "killed") {
        this.#life.log(`${this.spec.name} did not stop in time and was killed`);
      }
    }
    await this.#run;
    if (this.#status.state !== "failed") this.#set({ state: "stopped" });
  }

  async #live(ready: PromiseWithResolvers<void>): Promise<void> {
    const { clock, log } = this.#life;
    let survivor = this.#survivor();
    for (let failures = 0, everReady = false; !this.#stopping.signal.aborted; ) {
      const logFrom = logSize(this.#life.home.logFile(this.spec.name));
      const startedAtMs = clock.nowMs();
      const current = survivor ?? (await this.#spawn());
      survivor = undefined;
      this.#process = current;
      const { identity, adopted } = current;
      // Told to stop while it was being spawned: nobody else knew of it yet.
      if (this.#stopping.signal.aborted) await stopProcess(identity, clock);
      this.#set({ state: "starting", process: identity, adopted, startedAtMs, readyAtMs: 0, addresses: {} });
      const arrived = await this.#untilReady(current, everReady ? Number.POSITIVE_INFINITY : readyDeadlineMs);
      if (arrived.ready) {
        everReady = true;
        this.#set({ state: "ready", readyAtMs: clock.nowMs(), addresses: arrived.addresses });
        this.#life.onReady(this.spec, arrived.addresses);
        ready.resolve();
      }
      const end = await current.ended;
      this.#process = undefined;
      if (this.#stopping.signal.aborted) return;
      if (clock.nowMs() - startedAtMs > stableMs) failures = 0;
      failures++;
      log(`${this.spec.name} (pid ${identity.pid}): ${end.how}`);
      const given = end.code === configExitCode || (!everReady && failures >= maxFirstStarts);
      if (given) throw this.#startFailure(end, logFrom);
      const delayMs = restartBackoff.baseMs / 2 + backoffDelayMs(restartBackoff, failures - 1);
      const restarts = this.#status.restarts + 1;
      this.#set({ state: "restarting", restarts, lastExit: end.how, addresses: {} });
      log(`${this.spec.name} is started again in ${delayMs} ms (restart ${restarts})`);
      await clock.sleep(delayMs, this.#stopping.signal).catch(() => undefined);
    }
  }

  /** A daemon that an earlier supervisor left running. */
  #survivor(): DaemonProcess | undefined {
    const [eldest, ...others] = findDaemon(this.spec.main, this.#life.home.root);
    for (const other of others) {
      this.#life.log(`${this.spec.name} runs twice; the younger (pid ${other.pid}) is stopped`);
      void stopProcess(other, this.#life.clock);
    }
    if (eldest === undefined) return undefined;
    this.#life.log(`${this.spec.name} (pid ${eldest.pid}) is adopted`);
    return adoptDaemon(eldest, this.#life.clock);
  }

  #spawn(): Promise<DaemonProcess> {
    const { home, env } = this.#life;
    this.#life.prepare(this.spec);
    return spawnDaemon({
      name: this.spec.name,
      main: this.spec.main,
      home: home.root,
      compileCacheDir: home.compileCacheDir,
      logFile: home.logFile(this.spec.name),
      env,
      settings: this.spec.environment({ home, ports: this.#life.portsFor(this.spec) }),
    });
  }

  /** Waits until it is ready or has ended; one that is neither at the deadline is ended, which is a failed start. */
  async #untilReady(
    current: DaemonProcess,
    deadlineMs: number,
  ): Promise<{ ready: true; addresses: Addresses } | { ready: false }> {
    const { clock, home, log } = this.#life;
    const giveUpAtMs = clock.nowMs() + deadlineMs;
    for (let why = "it has not written its addresses"; isAlive(current.identity); ) {
      const addresses = readAddresses(home.addressFile(this.spec.name), current.identity.pid);
      const reason = addresses === undefined ? why : await whyNotReady(addresses);
      if (reason === undefined && addresses !== undefined) return { ready: true, addresses };
      why = reason ?? why;
      if (clock.nowMs() > giveUpAtMs) {
        log(`${this.spec.name} is not ready after ${deadlineMs / 1000} s: ${why}`);
        await stopProcess(current.identity, clock);
        return { ready: false };
      }
      await clock.sleep(readyPollMs);
    }
    return { ready: false };
  }

  #startFailure(end: DaemonEnd, logFrom: number): CliFailure {
    const path = this.#life.home.logFile(this.spec.name);
    const refused = end.code === configExitCode;
    return new CliFailure(`${this.spec.name} ${refused ? "refuses its settings" : "does not start"} (${end.how})`, {
      nextStep: refused
        ? "Correct the setting that the lines above name."
        : `Read ${path}, correct that and run it again.`,
      evidence: lastLines(path, 8, logFrom),
    });
  }

  #set(change: Partial<DaemonStatus>): void {
    this.#status = { ...this.#status, ...change };
    this.#life.onChange();
  }
}
