import { clone, create, equals } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import {
  type CreateVmRequest,
  CreateVmRequestSchema,
  ExitStatusSchema,
  type Host,
  HostSchema,
  MetalService,
  type Vm,
  VmSchema,
  VmState,
} from "@unkey/api/metal";
import { gib, newId, ServiceError } from "@unkey/base";

export type MetalMethod =
  | "getHost"
  | "reserveCapacity"
  | "releaseReservation"
  | "createVm"
  | "bootVm"
  | "pauseVm"
  | "resumeVm"
  | "rebootVm"
  | "shutdownVm"
  | "deleteVm"
  | "getVm"
  | "streamLogs";

/** The program of a VM: started when it boots, on the VM's own loopback address. */
export interface FakeProgram extends AsyncDisposable {
  readonly output?: string;
  /** Set when it ended by itself at once. */
  readonly exitCode?: number;
}

interface FakeVm {
  vm: Vm;
  readonly request: CreateVmRequest;
  program?: FakeProgram | undefined;
  output: string;
}

export interface FakeMetaldOptions {
  /** Runs a VM's program; what it listens on has to be on `ipAddress`. */
  run: (vm: Vm, request: CreateVmRequest) => Promise<FakeProgram>;
}

/**
 * A metald of the contract without hypervisor: VMs are rows, programs are servers on loopback addresses. It can be told
 * to fail, hang or answer late before or after the effect of a verb.
 */
export class FakeMetald {
  readonly hostId = newId("host");
  readonly vms = new Map<string, FakeVm>();
  readonly reservations = new Map<string, bigint>();
  readonly calls: { readonly method: MetalMethod; readonly vmId: string }[] = [];
  /** Runs before a verb's effect; throw to fail, wait to hang. */
  before: (method: MetalMethod, id: string) => Promise<void> | void = () => undefined;
  /** Runs after a verb's effect, before its answer. */
  after: (method: MetalMethod, id: string) => Promise<void> | void = () => undefined;
  run: FakeMetaldOptions["run"];
  readonly capacity: { vcpuCount: number; memoryBytes: bigint; diskBytes: bigint };
  #watchers = new Set<(vm: Vm) => void>();
  #nextAddress = 1;

  constructor(options: FakeMetaldOptions) {
    this.run = options.run;
    this.capacity = { vcpuCount: 8, memoryBytes: BigInt(4 * gib), diskBytes: BigInt(64 * gib) };
  }

  /** VMs that are not deleted. */
  get alive(): Vm[] {
    return [...this.vms.values()].map(({ vm }) => vm).filter((vm) => vm.state !== VmState.DELETED);
  }

  /** The VM's program ends by itself. */
  async crash(vmId: string, code: number): Promise<void> {
    const entry = this.vms.get(vmId);
    if (!entry) throw new Error(`no ${vmId}`);
    await entry.program?.[Symbol.asyncDispose]();
    this.#move(entry, VmState.STOPPED, { exit: exitWith(code) });
  }

  readonly routes = (router: ConnectRouter): void => {
    router.service(MetalService, {
      getHost: () => this.#verb("getHost", "", () => this.#host()),
      reserveCapacity: (request) =>
        this.#verb("reserveCapacity", request.reservationId, () => {
          const memory = request.resources?.memoryBytes ?? 0n;
          if (!this.reservations.has(request.reservationId) && this.#used() + memory > this.capacity.memoryBytes) {
            throw new ServiceError("RESOURCE_EXHAUSTED", "the host is full");
          }
          this.reservations.set(request.reservationId, memory);
          return { reservationId: request.reservationId };
        }),
      releaseReservation: (request) =>
        this.#verb("releaseReservation", request.reservationId, () => {
          this.reservations.delete(request.reservationId);
          return {};
        }),
      createVm: (request) => this.#verb("createVm", request.vmId, () => this.#create(request)),
      bootVm: ({ vmId }) =>
        this.#verb("bootVm", vmId, async () => {
          const entry = this.#mustFind(vmId);
          if (entry.vm.state === VmState.RUNNING) return entry.vm;
          if (entry.vm.state !== VmState.CREATED && entry.vm.state !== VmState.STOPPED)
            throw conflict(entry.vm, "boot");
          entry.program = await this.run(entry.vm, entry.request);
          entry.output += entry.program.output ?? "";
          this.#move(entry, VmState.RUNNING, {
            incarnation: entry.vm.incarnation + 1,
            startedAtMs: BigInt(Date.now()),
          });
          const { exitCode } = entry.program;
          if (exitCode !== undefined) {
            this.#move(entry, VmState.STOPPED, { exit: exitWith(exitCode) });
          }
          return entry.vm;
        }),
      pauseVm: ({ vmId }) => this.#verb("pauseVm", vmId, () => this.#swap(vmId, VmState.RUNNING, VmState.PAUSED)),
      resumeVm: ({ vmId }) => this.#verb("resumeVm", vmId, () => this.#swap(vmId, VmState.PAUSED, VmState.RUNNING)),
      rebootVm: ({ vmId }) =>
        this.#verb("rebootVm", vmId, async () => {
          const entry = this.#mustFind(vmId);
          await this.#end(entry, VmState.STOPPED);
          entry.program = await this.run(entry.vm, entry.request);
          this.#move(entry, VmState.RUNNING, { incarnation: entry.vm.incarnation + 1 });
          return entry.vm;
        }),
      shutdownVm: ({ vmId }) =>
        this.#verb("shutdownVm", vmId, async () => {
          const entry = this.#mustFind(vmId);
          if (entry.vm.state === VmState.CREATED) throw conflict(entry.vm, "shut down");
          await this.#end(entry, VmState.STOPPED);
          return entry.vm;
        }),
      deleteVm: ({ vmId }) =>
        this.#verb("deleteVm", vmId, async () => {
          const entry = this.#mustFind(vmId);
          await this.#end(entry, VmState.DELETED);
          return entry.vm;
        }),
      getVm: ({ vmId }) => this.#verb("getVm", vmId, () => this.#mustFind(vmId).vm),
      watchVms: (request, context) => this.#watch(request.tenantId, context.signal),
      streamLogs: (request) => this.#logs(request.vmId),
    });
  };

  async *#logs(vmId: string) {
    await this.before("streamLogs", vmId);
    yield { data: Buffer.from(this.#mustFind(vmId).output), droppedBytes: 0n };
  }

  async *#watch(tenantId: string, signal: AbortSignal): AsyncGenerator<Vm> {
    const queue = [...this.vms.values()].map(({ vm }) => vm);
    let wake = Promise.withResolvers<void>();
    const watcher = (vm: Vm) => {
      queue.push(vm);
      wake.resolve();
    };
    this.#watchers.add(watcher);
    signal.addEventListener("abort", () => wake.resolve(), { once: true });
    try {
      while (!signal.aborted) {
        for (const vm of queue.splice(0)) if (vm.tenantId === tenantId) yield clone(VmSchema, vm);
        wake = Promise.withResolvers();
        if (queue.length === 0 && !signal.aborted) await wake.promise;
      }
    } finally {
      this.#watchers.delete(watcher);
    }
  }

  #create(request: CreateVmRequest): Vm {
    const known = this.vms.get(request.vmId);
    if (known) {
      const same = { ...request, reservationId: known.request.reservationId };
      if (!equals(CreateVmRequestSchema, same, known.request)) throw new ServiceError("ALREADY_EXISTS", "another spec");
      return known.vm;
    }
    this.reservations.delete(request.reservationId);
    const last = this.#nextAddress++;
    const vm = create(VmSchema, {
      vmId: request.vmId,
      tenantId: request.tenantId,
      appId: request.appId,
      deploymentId: request.deploymentId,
      state: VmState.CREATED,
      ipAddress: `127.${process.pid % 200}.${last >> 8}.${(last & 0xff) + 1}`,
      hostId: this.hostId,
      createdAtMs: BigInt(Date.now()),
      revision: 1n,
      ...(request.spec?.resources ? { resources: request.spec.resources } : {}),
    });
    this.vms.set(vm.vmId, { vm, request, output: "" });
    for (const watcher of this.#watchers) watcher(vm);
    return vm;
  }

  #swap(vmId: string, from: VmState, to: VmState): Vm {
    const entry = this.#mustFind(vmId);
    if (entry.vm.state !== from) throw conflict(entry.vm, "change");
    this.#move(entry, to);
    return entry.vm;
  }

  async #end(entry: FakeVm, state: VmState): Promise<void> {
    await entry.program?.[Symbol.asyncDispose]();
    entry.program = undefined;
    if (entry.vm.state === VmState.DELETED || entry.vm.state === state) return;
    this.#move(entry, state, { endedAtMs: BigInt(Date.now()) });
  }

  #move(entry: FakeVm, state: VmState, more: Partial<Vm> = {}): void {
    entry.vm = Object.assign(clone(VmSchema, entry.vm), more, { state, revision: entry.vm.revision + 1n });
    for (const watcher of this.#watchers) watcher(entry.vm);
  }

  #mustFind(vmId: string): FakeVm {
    const entry = this.vms.get(vmId);
    if (!entry) throw new ServiceError("VM_NOT_FOUND", `no ${vmId}`);
    return entry;
  }

  #used(): bigint {
    const held = [...this.reservations.values()].reduce((sum, bytes) => sum + bytes, 0n);
    return this.alive.reduce((sum, vm) => sum + (vm.resources?.memoryBytes ?? 0n), held);
  }

  #host(): Host {
    return create(HostSchema, {
      hostId: this.hostId,
      hostname: "fake",
      hypervisor: "memory",
      acceleration: "none",
      capacity: this.capacity,
      allocated: { vcpuCount: 0, memoryBytes: this.#used(), diskBytes: 0n },
      vmCount: this.alive.length,
    });
  }

  async #verb<T>(method: MetalMethod, vmId: string, effect: () => T | Promise<T>): Promise<T> {
    this.calls.push({ method, vmId });
    await this.before(method, vmId);
    const result = await effect();
    await this.after(method, vmId);
    return result;
  }

  async stop(): Promise<void> {
    for (const entry of this.vms.values()) await entry.program?.[Symbol.asyncDispose]();
  }
}

function exitWith(code: number) {
  return create(ExitStatusSchema, { outcome: { case: "code", value: code } });
}

function conflict(vm: Vm, verb: string): ServiceError {
  return new ServiceError("VM_STATE_CONFLICT", `a VM in state ${vm.state} cannot ${verb}`);
}

export const unavailable = () => new ServiceError("VMM_UNAVAILABLE", "told to be unavailable");
