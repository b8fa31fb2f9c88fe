import { isServiceError, nextState, ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { acceptedActions, type VmEvent, type VmState, vmTransitions } from "@unkey/model";
import type { VmProcess } from "@unkey/vmm";
import { plans, type StepKind } from "./domain/plans.ts";
import type { SlotIdentity } from "./domain/slot-identity.ts";
import type { Failure, Operation, Verb, Vm, VmPatch } from "./domain/vm.ts";
import { changeOf } from "./domain/vm-change.ts";
import type { VmStore } from "./ports.ts";
import { continueMetering } from "./vm-metering.ts";
import type { VmPaths } from "./vm-paths.ts";
import { findProcess, isOver } from "./vm-process.ts";
import type { StepDeps, VmSession } from "./vm-session.ts";
import { vmSteps } from "./vm-steps.ts";

export interface VmDriverDeps extends StepDeps {
  readonly store: VmStore;
  readonly log: Logger;
  /** Aborts when this metald must let go of everything; its VMs and pending verbs are left to the next one. */
  readonly abort: AbortSignal;
  readonly lastLines: (paths: VmPaths) => Promise<string[]>;
  readonly onChange: (vm: Vm) => void;
  /** Told before and after each step and recorded change: the place where tests let a metald die. */
  readonly trace?: ((point: string) => Promise<void> | void) | undefined;
}

interface Command {
  readonly verb: Verb;
  readonly force: boolean;
  readonly done: PromiseWithResolvers<Vm>;
}

const maxWaiting = 16;
const retryDelaysMs = [1_000, 5_000, 30_000] as const;

/** The verbs whose outcome is a state; asking for the state that the VM is in is success. */
const arrivals: Partial<Record<Verb, VmState>> = {
  boot: "running",
  pause: "paused",
  resume: "running",
  shutdown: "stopped",
  delete: "deleted",
};

/**
 * The one place where a VM changes. Verbs and the ends of its process queue here and are carried out one after the other.
 * A verb is a plan (domain/plans.ts): its events are recorded, its steps find out what is left to do. A metald that starts
 * again resumes the recorded verb where it was.
 */
export class VmDriver {
  readonly #deps: VmDriverDeps;
  readonly #identity: SlotIdentity;
  readonly #paths: VmPaths;
  readonly #log: Logger;
  readonly #waiting: Command[] = [];
  #vm: Vm;
  #process: VmProcess | undefined;
  #unsubscribe: (() => void) | undefined;
  #hurry = new AbortController();
  #working: Promise<void> | undefined;
  #retryTimer: NodeJS.Timeout | undefined;
  #retries = 0;

  constructor(vm: Vm, identity: SlotIdentity, paths: VmPaths, deps: VmDriverDeps) {
    this.#vm = vm;
    this.#identity = identity;
    this.#paths = paths;
    this.#deps = deps;
    this.#log = deps.log.child({ vmId: vm.id, tenantId: vm.tenantId });
  }

  get vm(): Vm {
    return this.#vm;
  }

  get paths(): VmPaths {
    return this.#paths;
  }

  /** Queues a verb; resolves with the VM when it has arrived. Throws VM_BUSY when too many wait. */
  async request(verb: Verb, options: { readonly force?: boolean } = {}): Promise<Vm> {
    if (this.#deps.abort.aborted) throw stopping();
    // The end of a process is never turned away; the queue has room for one more of those.
    if (verb !== "reap" && this.#waiting.length >= maxWaiting) {
      throw new ServiceError("VM_BUSY", `${this.#waiting.length} requests wait for this VM already`);
    }
    const command: Command = { verb, force: options.force ?? false, done: Promise.withResolvers() };
    this.#waiting.push(command);
    // Who wants the VM ended does not wait for a guest that is still coming up, nor a forced end for an orderly one.
    const ends = verb === "delete" || verb === "shutdown";
    if (ends && this.#vm.state === "booting") this.#hurry.abort();
    if ((verb === "delete" || command.force) && this.#vm.state === "stopping") this.#hurry.abort();
    this.#work();
    return command.done.promise;
  }

  /** Takes up a VM that another metald left: its pending verb, its process, its meter. */
  recover(): Promise<Vm> {
    return this.request("reap");
  }

  /** Resolves when nothing is being done. */
  async idle(): Promise<void> {
    while (this.#working) await this.#working;
  }

  /** Lets go of the VM; it keeps running. */
  async close(): Promise<void> {
    clearTimeout(this.#retryTimer);
    this.#unsubscribe?.();
    await this.#process?.[Symbol.asyncDispose]();
  }

  #work(): void {
    this.#working ??= this.#drain().finally(() => {
      this.#working = undefined;
      if (this.#waiting.length > 0) this.#work();
    });
  }

  async #drain(): Promise<void> {
    const { abort } = this.#deps;
    for (let command = this.#waiting.shift(); command; command = this.#waiting.shift()) {
      try {
        abort.throwIfAborted();
        this.#hurry = new AbortController();
        if (this.#waiting.some(({ verb }) => verb === "delete" || verb === "shutdown")) this.#hurry.abort();
        command.done.resolve(await this.#carryOut(command));
        this.#retries = 0;
      } catch (error) {
        command.done.reject(abort.aborted ? stopping(error) : error);
        if (!abort.aborted && (this.#vm.operation || command.verb === "reap")) this.#retryLater(error);
      }
    }
  }

  async #carryOut({ verb, force }: Command): Promise<Vm> {
    if (this.#vm.operation) await this.#resume(this.#vm.operation);
    if (verb === "reap") return this.#lookAfter();
    const { state } = this.#vm;
    if (arrivals[verb] === state) return this.#vm;
    if (verb === "create") return this.#vm;
    if (verb === "release") {
      if (state !== "stopped" && state !== "failed") throw this.#refusal(verb);
    } else if (verb === "restage") {
      if (state === "deleting" || state === "deleted") return this.#vm;
    } else if (nextState<VmState, VmEvent>(vmTransitions, state, verb) === undefined) {
      throw this.#refusal(verb);
    }
    return this.#run({ verb, index: 0, ...(force ? { force } : {}) });
  }

  #refusal(verb: Verb): ServiceError {
    const { state, failure } = this.#vm;
    const why = failure && state === "failed" ? ` (${failure.reason}: ${failure.message})` : "";
    const accepted = acceptedActions(state).join(", ") || "nothing";
    return new ServiceError("VM_STATE_CONFLICT", `a VM that is ${state}${why} takes no ${verb}; it takes ${accepted}`);
  }

  /** Looks at a VM that should be alive: follows it, or collects what is left of it. */
  async #lookAfter(): Promise<Vm> {
    const { state } = this.#vm;
    if (state !== "running" && state !== "paused" && state !== "created") return this.#vm;
    const process = await findProcess(this.#deps, this.#session(false));
    if (state === "created") return this.#vm; // a boot defines a process that has gone anew
    if (!process || isOver(process)) return this.#run({ verb: "reap", index: 0 });
    // The process knows better than the record whether a pause was carried out before a crash.
    if (process.state === "paused" && state === "running") await this.#record("pause", {});
    if (process.state === "running" && state === "paused") await this.#record("resume", {});
    await continueMetering(this.#deps, this.#session(false));
    return this.#vm;
  }

  /** Finishes a verb that was recorded as begun; returns when the VM is free for the next one. */
  async #resume(operation: Operation): Promise<void> {
    const { verb, failure } = operation;
    this.#log.info("goes on with what was left unfinished", { verb, undo: failure?.reason });
    try {
      if (failure) await this.#undo(operation, failure);
      else await this.#run(operation);
    } catch (error) {
      if (this.#vm.operation) throw error;
      this.#log.warn("what was left unfinished has failed", { verb, error });
    }
  }

  async #run(operation: Operation): Promise<Vm> {
    const { items, retryable } = plans[operation.verb];
    let current = operation;
    try {
      for (const [index, item] of items.entries()) {
        if (index < operation.index) continue;
        if ("step" in item) {
          await this.#step(item.step, operation);
        } else {
          current = { ...operation, index: index + 1 };
          await this.#record(
            item.event,
            { operation: index === items.length - 1 ? undefined : current },
            operation.verb,
          );
        }
      }
      return this.#vm;
    } catch (cause) {
      this.#deps.abort.throwIfAborted();
      const error = named(cause);
      this.#log.warn("verb failed", { verb: operation.verb, error });
      if (!retryable) {
        const failure = {
          reason: error.reason,
          message: error.message,
          lastLines: await this.#deps.lastLines(this.#paths),
        };
        await this.#undo(current, failure).catch((undoError: unknown) => {
          this.#log.error("what a failed verb made could not be taken back yet", { error: undoError });
        });
      }
      throw error;
    }
  }

  /** Takes back what a failed verb made. The failure is recorded first, so that a crash here does not forget it. */
  async #undo(operation: Operation, failure: Failure): Promise<void> {
    if (!operation.failure) await this.#update({ operation: { ...operation, failure } });
    for (const step of plans[operation.verb].undo) await this.#step(step, operation);
    if (failure.reason === "VM_BOOT_INTERRUPTED") await this.#record("exited", { operation: undefined });
    else await this.#record("fail", { failure, operation: undefined });
  }

  async #step(step: StepKind, { force = false }: Operation): Promise<void> {
    const { abort, trace } = this.#deps;
    await trace?.(`before ${step}`);
    abort.throwIfAborted();
    const startedAtMs = performance.now();
    await vmSteps[step](this.#deps, this.#session(force));
    this.#log.debug("step done", { step, tookMs: Math.round(performance.now() - startedAtMs) });
    await trace?.(`after ${step}`);
  }

  #session(force: boolean): VmSession {
    const current = () => ({ vm: this.#vm, process: this.#process });
    return {
      get vm() {
        return current().vm;
      },
      get process() {
        return current().process;
      },
      identity: this.#identity,
      paths: this.#paths,
      log: this.#log,
      signal: this.#deps.abort,
      hurry: this.#hurry.signal,
      force,
      update: (patch) => this.#update(patch),
      adopt: (process) => this.#adopt(process),
    };
  }

  #adopt(process: VmProcess): void {
    this.#dropProcess();
    this.#process = process;
    this.#unsubscribe = process.subscribe((event) => {
      // A running verb looks by itself; this one waits for its end.
      if (event.type === "state" && isOver(process)) this.#lookAgain();
    });
  }

  /** What comes of it is logged where it happens. */
  #lookAgain(): void {
    if (this.#waiting.some(({ verb }) => verb === "reap")) return;
    this.request("reap").catch(() => undefined);
  }

  #dropProcess(): void {
    this.#unsubscribe?.();
    void this.#process?.[Symbol.asyncDispose]();
    this.#unsubscribe = undefined;
    this.#process = undefined;
  }

  /** Records an event of the table, with what it changes. */
  async #record(event: VmEvent, patch: VmPatch, verb?: Verb): Promise<void> {
    const { guest: report = {}, end } = this.#process ?? {};
    const { change, failure } = changeOf(event, this.#vm, { nowMs: this.#deps.clock.nowMs(), verb, report, end });
    const told = failure ? { failure: { ...failure, lastLines: await this.#deps.lastLines(this.#paths) } } : {};
    await this.#update({ ...patch, ...change, ...told });
    if ("record" in change) this.#dropProcess();
  }

  async #update(patch: VmPatch): Promise<void> {
    const { store, clock, abort, trace, onChange } = this.#deps;
    const point = patch.state ?? (patch.operation?.failure ? "failing" : "update");
    await trace?.(`before recording ${point}`);
    abort.throwIfAborted();
    this.#vm = await store.update(this.#vm, patch, clock.nowMs());
    if (patch.state) this.#log.info("state", { state: patch.state, incarnation: this.#vm.incarnation });
    onChange(this.#vm);
    await trace?.(`after recording ${point}`);
  }

  /** A VM that could not be taken further is looked at again, ever less often. */
  #retryLater(error: unknown): void {
    const delayMs = retryDelaysMs[Math.min(this.#retries++, retryDelaysMs.length - 1)] ?? 0;
    this.#log.warn("will try again", { delayMs, error });
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.#lookAgain(), delayMs).unref();
  }
}

/** Every failure has a name of the catalogue: what a host program or the file system refused is the host's. */
function named(error: unknown): ServiceError {
  if (isServiceError(error)) return error;
  return new ServiceError("HOST_RESOURCE_FAILED", "the host could not give the VM what it needs", { cause: error });
}

function stopping(cause?: unknown): ServiceError {
  return new ServiceError("SHUTTING_DOWN", "metald is stopping; it goes on with this VM when it starts again", {
    cause,
  });
}
