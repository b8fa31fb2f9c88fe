import { nextState, ServiceError } from "@unkey/base";
import { foldControlLine, type GuestReport } from "./guest-report.ts";
import type { VmEnd, VmEvent } from "./hypervisor.ts";
import { type VmProcessEvent, type VmProcessState, vmProcessTransitions } from "./vm-process-state.ts";

/** What is known of one VM's process and guest, and who wants to hear of changes: the part that all drivers share. */
export class VmStatus {
  readonly #listeners = new Set<(event: VmEvent) => void>();
  #state: VmProcessState = "created";
  #guest: GuestReport = {};
  #end: VmEnd | undefined;

  get state(): VmProcessState {
    return this.#state;
  }

  get guest(): GuestReport {
    return this.#guest;
  }

  get end(): VmEnd | undefined {
    return this.#end;
  }

  subscribe(listener: (event: VmEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  accepts(event: VmProcessEvent): boolean {
    return nextState<VmProcessState, VmProcessEvent>(vmProcessTransitions, this.#state, event) !== undefined;
  }

  /** Throws unless `event` is possible now: VM_GONE without a process, else VM_STATE_CONFLICT. */
  demand(event: VmProcessEvent): void {
    if (!this.accepts(event)) this.#refuse(event);
  }

  /** Throws VM_GONE without a process and VM_STATE_CONFLICT while the guest does not execute. */
  demandRunning(verb: string): void {
    if (this.#state !== "running") this.#refuse(verb);
  }

  /** Throws VM_GONE without a process. */
  demandProcess(): void {
    if (this.#state === "gone") throw new ServiceError("VM_GONE", "the monitor process of this VM has ended");
  }

  /** Moves along the table; an event that the state does not accept is late news and ignored. */
  apply(event: VmProcessEvent): void {
    const next = nextState<VmProcessState, VmProcessEvent>(vmProcessTransitions, this.#state, event);
    if (next === undefined) return;
    this.#state = next;
    this.#emit({ type: "state", state: next });
  }

  /** The guest or the process is over; the first reason given is kept. */
  finish(event: "end" | "exit", end: VmEnd): void {
    if (!this.accepts(event)) return;
    this.#end ??= end;
    this.apply(event);
  }

  /** Takes in one line of the guest's control port. */
  addControlLine(line: string): void {
    const guest = foldControlLine(this.#guest, line);
    if (guest === this.#guest) return;
    this.#guest = guest;
    this.#emit({ type: "guest", report: guest });
  }

  #refuse(verb: string): never {
    this.demandProcess();
    throw new ServiceError("VM_STATE_CONFLICT", `a VM whose monitor is in state ${this.#state} cannot ${verb}`);
  }

  #emit(event: VmEvent): void {
    for (const listener of this.#listeners) listener(event);
  }
}
