import { connect as connectSocket, type Socket } from "node:net";
import { isServiceError, ServiceError } from "@unkey/base";
import { abortable } from "./abortable.ts";
import { ControlLog, readControlLog } from "./control-log.ts";
import type { GuestReport } from "./guest-report.ts";
import { type BlockCounters, type VmEnd, type VmEvent, type VmProcess, type VmRecord, vmFiles } from "./hypervisor.ts";
import { readBlockStats, readRunState } from "./qemu-answers.ts";
import { qemuFiles } from "./qemu-arguments.ts";
import type { QemuProcess } from "./qemu-process.ts";
import { QmpClient, type QmpEvent } from "./qmp-client.ts";
import { untilVm } from "./until.ts";
import type { VmProcessState } from "./vm-process-state.ts";
import { VmStatus } from "./vm-status.ts";

/** How long a monitor may take to quit by itself before it is killed. */
const quitPatienceMs = 2000;
/** The kernel takes back a killed monitor's memory within this. */
const killPatienceMs = 10_000;

/**
 * One QEMU process. Its state comes from QMP's events, checked against `query-status` at each (re)connect; what the guest
 * said comes from the control log alone, read before every end is announced; its death from the child's exit, or for an
 * adopted process from the monitor's socket closing and /proc.
 */
export class QemuVm implements VmProcess {
  readonly #process: QemuProcess;
  readonly #status = new VmStatus();
  #controlLog: ControlLog | undefined;
  #control: Socket | undefined;
  #qmp: QmpClient | undefined;
  #stopLine: string | undefined;
  #lastEnd: VmEnd | undefined;
  #isDisposed = false;

  private constructor(process: QemuProcess) {
    this.#process = process;
    void process.exited.then(() => this.#gone());
  }

  /** A handle on a live monitor; rejects with VMM_UNAVAILABLE when it does not speak QMP. */
  static async open(process: QemuProcess, signal: AbortSignal): Promise<QemuVm> {
    const vm = new QemuVm(process);
    try {
      vm.#controlLog = new ControlLog(vmFiles(process.record.dir).controlLog, {
        line: (line) => vm.#addControlLine(line),
        overflow: () => process.kill(),
      });
      vm.#controlLog.read();
      await vm.#connect(signal);
      return vm;
    } catch (error) {
      await vm[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** A handle on a monitor that is no more. */
  static remains(process: QemuProcess): QemuVm {
    const vm = new QemuVm(process);
    for (const line of readControlLog(vmFiles(process.record.dir).controlLog)) vm.#status.addControlLine(line);
    vm.#gone();
    return vm;
  }

  get record(): VmRecord {
    return this.#process.record;
  }

  get state(): VmProcessState {
    return this.#status.state;
  }

  get guest(): GuestReport {
    return this.#status.guest;
  }

  get end(): VmEnd | undefined {
    return this.#status.end;
  }

  subscribe(listener: (event: VmEvent) => void): () => void {
    return this.#status.subscribe(listener);
  }

  async boot(signal: AbortSignal): Promise<void> {
    this.#status.demand("boot");
    await this.#execute("cont", signal);
    this.#status.apply("boot"); // unless the event came first
  }

  async pause(signal: AbortSignal): Promise<void> {
    this.#status.demand("pause");
    await this.#execute("stop", signal);
    if (this.state === "running") this.#status.apply("pause");
    if (this.state !== "paused") this.#status.demandRunning("pause"); // the guest ended meanwhile
  }

  async resume(signal: AbortSignal): Promise<void> {
    this.#status.demand("resume");
    await this.#execute("cont", signal);
    if (this.state === "paused") this.#status.apply("resume");
  }

  async requestShutdown({ graceMs }: { readonly graceMs: number }, signal: AbortSignal): Promise<void> {
    this.#status.demandRunning("shut down");
    this.#stopLine = `stop ${Math.max(0, Math.round(graceMs))}\n`;
    await this.#sendToGuest(this.#stopLine, signal);
  }

  async readBlockCounters(signal: AbortSignal): Promise<readonly BlockCounters[]> {
    this.#status.demandProcess();
    return readBlockStats(await this.#execute("query-blockstats", signal));
  }

  async destroy(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#isGone) return;
    try {
      const patience = AbortSignal.any([signal, AbortSignal.timeout(quitPatienceMs)]);
      await this.#execute("quit", patience);
      await untilVm(this, () => this.#isGone, patience);
    } catch {
      this.#process.kill(); // it does not listen, or is on its way
      if (await this.#process.isGoneWithin(killPatienceMs)) this.#gone();
    }
    if (!this.#isGone) throw new ServiceError("VMM_UNAVAILABLE", "the monitor process survives SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isDisposed = true;
    this.#controlLog?.close();
    this.#control?.destroy();
    this.#qmp?.close();
  }

  get #isGone(): boolean {
    return this.#status.state === "gone";
  }

  async #connect(signal: AbortSignal): Promise<QmpClient> {
    const client = await QmpClient.connect(
      qemuFiles(this.record.dir).qmpSocket,
      (event) => this.#takeEvent(event),
      signal,
    );
    this.#qmp = client;
    void client.closed.then(() => this.#lostMonitor(client));
    this.#takeRunState(readRunState(await client.execute("query-status", {}, signal)));
    return client;
  }

  async #execute(command: string, signal: AbortSignal): Promise<unknown> {
    try {
      const client = this.#qmp ?? (await this.#connect(signal));
      return await client.execute(command, {}, signal);
    } catch (error) {
      // The connection breaks a moment before the process is gone: find out which of the two it is.
      if (isServiceError(error, "VMM_UNAVAILABLE") && this.#qmp === undefined && (await this.#process.isGoneWithin())) {
        this.#gone();
        this.#status.demandProcess();
      }
      throw error;
    }
  }

  async #lostMonitor(client: QmpClient): Promise<void> {
    if (this.#qmp === client) this.#qmp = undefined;
    if (this.#isDisposed) return;
    if (await this.#process.isGoneWithin()) return this.#gone();
    // Alive without its socket: without a connection its end would go unnoticed.
    if (!this.#isDisposed && this.#qmp === undefined)
      await this.#connect(AbortSignal.timeout(quitPatienceMs)).catch(() => undefined);
  }

  #takeEvent({ event, data }: QmpEvent): void {
    switch (event) {
      case "RESUME":
        return this.#status.apply(this.state === "created" ? "boot" : "resume");
      case "STOP":
        return this.#status.apply("pause");
      case "SHUTDOWN":
        this.#lastEnd = { by: data["guest"] === true ? "guest" : "monitor", reason: String(data["reason"]) };
        // When the host ended it the process ends with it: there is no time in which the guest is over and the monitor is not.
        return this.#lastEnd.by === "guest" ? this.#ended(this.#lastEnd) : undefined;
      default:
        return;
    }
  }

  #takeRunState(runState: string): void {
    switch (runState) {
      case "prelaunch":
        return;
      case "running":
        this.#status.apply(this.state === "created" ? "boot" : "resume");
        return;
      case "shutdown":
      case "guest-panicked":
      case "internal-error":
        return this.#ended({ by: "guest", reason: runState === "shutdown" ? "guest-shutdown" : runState });
      default: // paused, io-error, watchdog, …: the guest is frozen
        this.#status.apply("boot");
        this.#status.apply("pause");
    }
  }

  #ended(end: VmEnd): void {
    this.#controlLog?.read(); // whoever hears of the end knows what the guest said before it
    this.#status.finish("end", end);
    this.#control?.destroy();
  }

  #gone(): void {
    this.#controlLog?.read();
    const { exited, failed } = this.guest;
    const byGuest = exited !== undefined || failed !== undefined;
    this.#status.finish(
      "exit",
      byGuest ? { by: "guest", reason: "guest-shutdown" } : { by: "monitor", reason: "process-died" },
    );
    this.#controlLog?.close();
    this.#control?.destroy();
    this.#qmp?.close();
  }

  #addControlLine(line: string): void {
    const wasStarted = this.guest.startedAtUptimeSeconds !== undefined;
    this.#status.addControlLine(line);
    const { startedAtUptimeSeconds, stopping } = this.guest;
    // A request from before the init listened may have been lost on the way.
    if (!wasStarted && startedAtUptimeSeconds !== undefined && !stopping && this.#stopLine !== undefined) {
      this.#control?.write(this.#stopLine);
    }
  }

  /** The connection stays open: closing it could drop what the guest has not read yet. */
  async #sendToGuest(line: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#control === undefined || this.#control.destroyed) {
      this.#control = connectSocket({ path: qemuFiles(this.record.dir).controlSocket });
      this.#control.on("error", () => undefined); // the write below reports it
      this.#control.resume(); // what the guest says is read from the log
    }
    const control = this.#control;
    const written = new Promise<void>((resolve, reject) => {
      control.write(line, (error) => {
        if (error === null || error === undefined) resolve();
        else
          reject(new ServiceError("VMM_UNAVAILABLE", `the guest's control port: ${error.message}`, { cause: error }));
      });
    });
    await abortable(written, signal);
  }
}
