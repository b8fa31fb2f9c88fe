import { rmSync, statSync } from "node:fs";
import { type Clock, ServiceError, systemClock } from "@unkey/base";
import { abortable } from "./abortable.ts";
import {
  type Hypervisor,
  type HypervisorCapabilities,
  type ProbeRequest,
  type ProbeResult,
  type VmProcess,
  type VmRecord,
  type VmSpec,
  vmFiles,
} from "./hypervisor.ts";
import { type MemoryGuest, MemoryMachine } from "./memory-machine.ts";
import { MemoryVm } from "./memory-vm.ts";
import { checkVmSpec } from "./vm-spec.ts";

export type MemoryVerb =
  | "probe"
  | "create"
  | "attach"
  | "boot"
  | "pause"
  | "resume"
  | "requestShutdown"
  | "readBlockCounters"
  | "destroy";

/**
 * What goes wrong the next time a verb is called:
 * - fail: it throws VMM_UNAVAILABLE and has no effect;
 * - hang: it has no effect and answers only when the caller's signal aborts;
 * - die: the monitor process dies instead, and the verb throws VM_GONE (probe and create: VM_LAUNCH_FAILED);
 * - late: it takes effect at once and answers after `ms`.
 */
export type MemoryFault =
  | { readonly kind: "fail" }
  | { readonly kind: "hang" }
  | { readonly kind: "die" }
  | { readonly kind: "late"; readonly ms: number };

export interface MemoryHypervisorOptions {
  readonly clock?: Clock;
  /** Decides what the guest of each new VM does; the default starts at once and stops with code 0 when asked. */
  readonly guestFor?: (spec: VmSpec) => Partial<MemoryGuest>;
}

const bootId = "00000000-0000-4000-8000-000000000000";

/**
 * A hypervisor without guests, for tests and simulations: the same port, the same refusals, events and files, and faults on
 * demand. Its machines live as long as this object, so a service that restarts on the same object adopts them.
 */
export class MemoryHypervisor implements Hypervisor {
  readonly name = "memory";
  readonly capabilities: HypervisorCapabilities = { pause: true, adopt: true, blockCounters: true, snapshot: false };
  readonly #clock: Clock;
  readonly #guestFor: (spec: VmSpec) => Partial<MemoryGuest>;
  readonly #machines = new Map<string, MemoryMachine>();
  readonly #faults = new Map<MemoryVerb, MemoryFault[]>();
  #started = 0;

  constructor(options: MemoryHypervisorOptions = {}) {
    this.#clock = options.clock ?? systemClock;
    this.#guestFor = options.guestFor ?? (() => ({}));
  }

  /** Queues `fault` for the next `times` calls of `verb`, on whichever VM. */
  inject(verb: MemoryVerb, fault: MemoryFault, times = 1): void {
    const queue = this.#faults.get(verb) ?? [];
    queue.push(...Array.from({ length: times }, () => fault));
    this.#faults.set(verb, queue);
  }

  /** The machine created last in `dir`: a test's hand inside the guest. */
  machine(dir: string): MemoryMachine {
    const machine = this.#machines.get(dir);
    if (machine === undefined) throw new Error(`no machine was created in ${dir}`);
    return machine;
  }

  async probe(_request: ProbeRequest, signal: AbortSignal): Promise<ProbeResult> {
    return this.#withFault("probe", undefined, signal, () => ({ accelerator: "memory", hypervisorVersion: "1" }));
  }

  async create(spec: VmSpec, signal: AbortSignal): Promise<VmProcess> {
    checkVmSpec(spec);
    if (!statSync(spec.dir, { throwIfNoEntry: false })?.isDirectory()) {
      throw new ServiceError("VM_SPEC_INVALID", `dir: ${spec.dir} is not a folder`);
    }
    if (this.#running(spec.dir) !== undefined) {
      throw new ServiceError("VM_STATE_CONFLICT", `a VM already runs in ${spec.dir}`);
    }
    return this.#withFault("create", undefined, signal, () => {
      const record = { driver: this.name, dir: spec.dir, pid: 0, startTicks: ++this.#started, bootId };
      const machine = new MemoryMachine(record, { clock: this.#clock, guest: this.#guestFor(spec) });
      this.#machines.set(spec.dir, machine);
      rmSync(vmFiles(spec.dir).controlLog, { force: true }); // what an earlier guest said is not this one's
      return this.#handle(machine);
    });
  }

  async attach(record: VmRecord, signal: AbortSignal): Promise<VmProcess> {
    if (record.driver !== this.name) {
      throw new ServiceError("VM_SPEC_INVALID", `record.driver: ${record.driver} is not ${this.name}`);
    }
    return this.#withFault("attach", undefined, signal, () => {
      const found = this.#machines.get(record.dir);
      const machine = found?.record.startTicks === record.startTicks ? found : MemoryMachine.lost(record);
      return this.#handle(machine);
    });
  }

  async find(dir: string): Promise<VmRecord | undefined> {
    return this.#running(dir)?.record;
  }

  #running(dir: string): MemoryMachine | undefined {
    const machine = this.#machines.get(dir);
    return machine?.status.state === "gone" ? undefined : machine;
  }

  #handle(machine: MemoryMachine): VmProcess {
    return new MemoryVm(machine, (verb, signal, effect) => this.#withFault(verb, machine, signal, effect));
  }

  async #withFault<T>(
    verb: MemoryVerb,
    machine: MemoryMachine | undefined,
    signal: AbortSignal,
    effect: () => T,
  ): Promise<T> {
    signal.throwIfAborted();
    const fault = this.#faults.get(verb)?.shift();
    if (fault === undefined) return effect();
    if (fault.kind === "hang") {
      return abortable(new Promise<never>(() => undefined), signal);
    }
    if (fault.kind === "late") {
      const result = effect();
      await this.#clock.sleep(fault.ms, signal);
      return result;
    }
    if (fault.kind === "fail")
      throw new ServiceError("VMM_UNAVAILABLE", `the monitor refused ${verb}, as it was told to`);
    machine?.die();
    throw new ServiceError(
      machine === undefined ? "VM_LAUNCH_FAILED" : "VM_GONE",
      `the monitor died during ${verb}, as it was told to`,
    );
  }
}
