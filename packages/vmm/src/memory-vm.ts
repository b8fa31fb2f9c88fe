import type { GuestReport } from "./guest-report.ts";
import type { BlockCounters, VmEnd, VmEvent, VmProcess, VmRecord } from "./hypervisor.ts";
import type { MemoryVerb } from "./memory-hypervisor.ts";
import type { MemoryMachine } from "./memory-machine.ts";
import type { VmProcessState } from "./vm-process-state.ts";

type Perform = <T>(verb: MemoryVerb, signal: AbortSignal, effect: () => T) => Promise<T>;

/** One owner's view of a machine; several may exist, and dropping one leaves the machine alone. */
export class MemoryVm implements VmProcess {
  readonly #machine: MemoryMachine;
  readonly #perform: Perform;
  readonly #unsubscribers = new Set<() => void>();

  constructor(machine: MemoryMachine, perform: Perform) {
    this.#machine = machine;
    this.#perform = perform;
  }

  get record(): VmRecord {
    return this.#machine.record;
  }

  get state(): VmProcessState {
    return this.#machine.status.state;
  }

  get guest(): GuestReport {
    return this.#machine.status.guest;
  }

  get end(): VmEnd | undefined {
    return this.#machine.status.end;
  }

  subscribe(listener: (event: VmEvent) => void): () => void {
    const unsubscribe = this.#machine.status.subscribe(listener);
    this.#unsubscribers.add(unsubscribe);
    return () => {
      this.#unsubscribers.delete(unsubscribe);
      unsubscribe();
    };
  }

  async boot(signal: AbortSignal): Promise<void> {
    await this.#perform("boot", signal, () => this.#machine.apply("boot"));
  }

  async pause(signal: AbortSignal): Promise<void> {
    await this.#perform("pause", signal, () => this.#machine.apply("pause"));
  }

  async resume(signal: AbortSignal): Promise<void> {
    await this.#perform("resume", signal, () => this.#machine.apply("resume"));
  }

  async requestShutdown({ graceMs }: { readonly graceMs: number }, signal: AbortSignal): Promise<void> {
    await this.#perform("requestShutdown", signal, () => {
      this.#machine.status.demandRunning("shut down");
      this.#machine.requestStop(graceMs);
    });
  }

  async readBlockCounters(signal: AbortSignal): Promise<readonly BlockCounters[]> {
    return this.#perform("readBlockCounters", signal, () => {
      this.#machine.status.demandProcess();
      return this.#machine.counters;
    });
  }

  async destroy(signal: AbortSignal): Promise<void> {
    await this.#perform("destroy", signal, () => this.#machine.quit());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const unsubscribe of this.#unsubscribers) unsubscribe();
    this.#unsubscribers.clear();
  }
}
