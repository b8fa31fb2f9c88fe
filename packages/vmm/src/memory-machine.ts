import { appendFileSync } from "node:fs";
import { type Clock, systemClock } from "@unkey/base";
import { readControlLog } from "./control-log.ts";
import type { AppExit } from "./guest-report.ts";
import { type BlockCounters, type DriveId, type VmEnd, type VmRecord, vmFiles } from "./hypervisor.ts";
import type { VmProcessEvent } from "./vm-process-state.ts";
import { VmStatus } from "./vm-status.ts";

/** What the guest of one machine does with its life. */
export interface MemoryGuest {
  /** From boot to the app's start. */
  readonly startDelayMs: number;
  /** The guest cannot get to the app. */
  readonly failBoot?: { readonly step: string; readonly reason: string };
  /** The app ends by itself this long after its start. */
  readonly exitAfter?: { readonly ms: number; readonly exit: AppExit };
  /** How the app answers a request to stop; `ignore` leaves it to the grace deadline's KILL. */
  readonly onStop: AppExit | "ignore" | "ignore-init";
  /** Written to the app's log at its start. */
  readonly appOutput: string;
}

const defaultGuest: MemoryGuest = { startDelayMs: 0, onStop: { code: 0 }, appOutput: "" };

/** SIGKILL, the end of an app that outlives its grace. */
const sigkill = 9;

type MutableCounters = { -readonly [K in keyof BlockCounters]: BlockCounters[K] };

/** One simulated monitor process with its guest. What falls due while the guest is frozen happens when it runs again. */
export class MemoryMachine {
  readonly record: VmRecord;
  readonly status = new VmStatus();
  readonly #clock: Clock;
  readonly #guest: MemoryGuest;
  readonly #counters: Record<DriveId, MutableCounters>;
  readonly #life = new AbortController();
  #thawed: PromiseWithResolvers<void> | undefined;

  constructor(record: VmRecord, options: { readonly clock: Clock; readonly guest: Partial<MemoryGuest> }) {
    this.record = record;
    this.#clock = options.clock;
    this.#guest = { ...defaultGuest, ...options.guest };
    this.#counters = { base: noCounters("base"), upper: noCounters("upper"), config: noCounters("config") };
  }

  /** A machine of which only the record is left. */
  static lost(record: VmRecord): MemoryMachine {
    const machine = new MemoryMachine(record, { clock: systemClock, guest: {} });
    for (const line of readControlLog(vmFiles(record.dir).controlLog)) machine.status.addControlLine(line);
    machine.die();
    return machine;
  }

  get counters(): readonly BlockCounters[] {
    return Object.values(this.#counters).map((counters) => ({ ...counters }));
  }

  /** Applies `event` or throws VM_STATE_CONFLICT (VM_GONE when there is no process). */
  apply(event: Exclude<VmProcessEvent, "end" | "exit">): void {
    this.status.demand(event);
    this.status.apply(event);
    if (event === "pause") {
      this.#thawed = Promise.withResolvers();
    } else {
      this.#thaw();
    }
    if (event === "boot") this.#live(() => this.#bootGuest());
  }

  /** The request to stop reaches the init. */
  requestStop(graceMs: number): void {
    if (this.#guest.onStop === "ignore-init" || this.status.guest.stopping) return;
    const { onStop } = this.#guest;
    this.say({ type: "stopping" });
    this.#live(async () => {
      if (onStop === "ignore") await this.#pass(graceMs);
      this.exitApp(onStop === "ignore" ? { signal: sigkill } : onStop);
    });
  }

  /** The app ends, and the guest powers off after it. */
  exitApp(exit: AppExit): void {
    this.say({ type: "exited", ...exit });
    this.#powerOff();
  }

  /** The monitor process is killed from outside. */
  die(): void {
    this.#finish("exit", { by: "monitor", reason: "process-died" });
  }

  /** The monitor process is asked to end. */
  quit(): void {
    this.#finish("exit", { by: "monitor", reason: "host-qmp-quit" });
  }

  /** Counts disk traffic, as if the guest had caused it. */
  addIo(drive: DriveId, io: Partial<Omit<BlockCounters, "drive">>): void {
    const counters = this.#counters[drive];
    counters.readBytes += io.readBytes ?? 0n;
    counters.writeBytes += io.writeBytes ?? 0n;
    counters.readOperations += io.readOperations ?? 0n;
    counters.writeOperations += io.writeOperations ?? 0n;
    counters.flushOperations += io.flushOperations ?? 0n;
  }

  /** The init writes one control message. */
  say(message: Readonly<Record<string, unknown>>): void {
    const line = JSON.stringify(message);
    append(vmFiles(this.record.dir).controlLog, `${line}\n`);
    this.status.addControlLine(line);
  }

  async #bootGuest(): Promise<void> {
    const { startDelayMs, failBoot, exitAfter, appOutput } = this.#guest;
    this.addIo("config", { readBytes: 4096n, readOperations: 1n });
    await this.#pass(startDelayMs);
    if (failBoot !== undefined) {
      this.say({ type: "failed", ...failBoot });
      this.#powerOff();
      return;
    }
    this.addIo("base", { readBytes: 1_048_576n, readOperations: 16n });
    this.say({ type: "started", uptimeSeconds: startDelayMs / 1000 });
    if (appOutput !== "") append(vmFiles(this.record.dir).appLog, appOutput);
    if (exitAfter === undefined) return;
    await this.#pass(exitAfter.ms);
    this.exitApp(exitAfter.exit);
  }

  #powerOff(): void {
    this.addIo("upper", { writeBytes: 4096n, writeOperations: 1n, flushOperations: 1n });
    this.#finish("end", { by: "guest", reason: "guest-shutdown" });
  }

  #finish(event: "end" | "exit", end: VmEnd): void {
    this.status.finish(event, end);
    this.#life.abort();
    this.#thaw();
  }

  #thaw(): void {
    this.#thawed?.resolve();
    this.#thawed = undefined;
  }

  /** Lets guest time pass: `ms`, and as long as the machine is frozen. */
  async #pass(ms: number): Promise<void> {
    await this.#clock.sleep(ms, this.#life.signal);
    while (this.#thawed !== undefined) await this.#thawed.promise;
    this.#life.signal.throwIfAborted();
  }

  /** Runs a piece of the guest; the end of the machine cuts it short. */
  #live(part: () => Promise<void>): void {
    part().catch((error: unknown) => {
      if (!this.#life.signal.aborted) throw error;
    });
  }
}

/** A monitor writes on, unseen, when its folder is taken away. */
function append(path: string, text: string): void {
  try {
    appendFileSync(path, text);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
}

function noCounters(drive: DriveId): MutableCounters {
  return { drive, readBytes: 0n, writeBytes: 0n, readOperations: 0n, writeOperations: 0n, flushOperations: 0n };
}
