import { createHash } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import { type CreateVmRequest, CreateVmRequestSchema, VmSpecSchema } from "@unkey/api/metal";
import { type ErrorReason, type HostId, parseId, ServiceError, type TenantId, type VmId } from "@unkey/base";
import { type LogPiece, type LogSource, VmLogs } from "./adapters/vm-logs.ts";
import type { Capacity, Resources } from "./domain/capacity.ts";
import { type Instance, slotIdentity } from "./domain/slot-identity.ts";
import { lastSlot } from "./domain/subnet.ts";
import type { Verb, Vm } from "./domain/vm.ts";
import { guestConfigOf } from "./guest-config.ts";
import type { ListQuery, Reservation } from "./ports.ts";
import { VmDriver, type VmDriverDeps } from "./vm-driver.ts";
import { vmPaths } from "./vm-paths.ts";
import { WatchHub } from "./watch-hub.ts";

export interface MetalServiceDeps extends Omit<VmDriverDeps, "lastLines" | "onChange"> {
  readonly hostId: HostId;
  readonly instance: Instance;
  readonly capacity: Capacity;
  readonly vmsDir: string;
  readonly logLimitBytes: number;
}

/** Narrows what a caller sees; undefined is an operator that sees every tenant. */
export type Scope = TenantId | undefined;

interface Entry {
  readonly driver: VmDriver;
  readonly logs: VmLogs;
}

/** The VMs of this host: finds the driver of each, admits new ones, and shows them. */
export class MetalService implements AsyncDisposable {
  readonly #deps: MetalServiceDeps;
  readonly #hub = new WatchHub();
  readonly #entries = new Map<VmId, Entry>();
  #draining = false;

  constructor(deps: MetalServiceDeps) {
    this.#deps = deps;
  }

  get hostId(): HostId {
    return this.#deps.hostId;
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** Takes up what an earlier metald left. Returns at once; each VM is looked after in its own queue. */
  async recover(): Promise<void> {
    const { store, log } = this.#deps;
    for (const vm of await store.alive()) {
      this.#enter(vm)
        .driver.recover()
        .catch((error: unknown) => log.warn("a VM could not be taken up yet", { vmId: vm.id, error }));
    }
  }

  async createVm(request: CreateVmRequest): Promise<Vm> {
    const { store, clock, capacity, instance } = this.#deps;
    if (this.#draining) throw new ServiceError("HOST_DRAINING", "this host takes no new VMs");
    const { spec } = request;
    if (!spec?.resources) throw new ServiceError("INVALID_REQUEST", "spec.resources: is missing");
    const id = parseId("vm", request.vmId, "vm_id");
    const wish = {
      id,
      tenantId: parseId("tenant", request.tenantId, "tenant_id"),
      appId: request.appId,
      deploymentId: request.deploymentId,
      specHash: hashOf(request),
      spec: toBinary(VmSpecSchema, spec),
      vcpuCount: spec.resources.vcpuCount,
      memoryBytes: Number(spec.resources.memoryBytes),
      diskBytes: Number(spec.resources.diskBytes),
      rootfsAssetId: parseId("asset", spec.rootfsAssetId, "spec.rootfs_asset_id"),
      createdAtMs: clock.nowMs(),
      reservationId: request.reservationId,
    };
    guestConfigOf(wish, { ...this.#deps.networks.guestSettings, address: "192.0.2.1" }); // refuses what no guest could run
    const { vm } = await store.admit(wish, capacity, lastSlot(instance.subnet));
    if (vm.state === "deleted") return vm;
    const entry = this.#entries.get(id) ?? this.#enter(vm);
    const made = await entry.driver.request("create");
    if (made.state === "failed" && made.failure) {
      throw new ServiceError(made.failure.reason as ErrorReason, made.failure.message);
    }
    return made;
  }

  /** Holds room for a VM to come; yields when the hold ends by itself. */
  async reserve(wanted: Omit<Reservation, "expiresAtMs"> & { readonly holdMs: number }): Promise<number> {
    const { store, clock, capacity } = this.#deps;
    if (this.#draining) throw new ServiceError("HOST_DRAINING", "this host takes no new VMs");
    const nowMs = clock.nowMs();
    const expiresAtMs = nowMs + wanted.holdMs;
    await store.reserve({ ...wanted, expiresAtMs }, capacity, nowMs);
    return expiresAtMs;
  }

  releaseReservation(tenantId: TenantId, id: string): Promise<void> {
    return this.#deps.store.releaseReservation(tenantId, id);
  }

  /** Carries out a verb; resolves when the VM has arrived. */
  async perform(verb: Verb, scope: Scope, vmId: string, options: { readonly force?: boolean } = {}): Promise<Vm> {
    const vm = await this.getVm(scope, vmId);
    const entry = this.#entries.get(vm.id);
    if (entry) return entry.driver.request(verb, options);
    if (verb === "delete") return vm; // deleted already
    throw new ServiceError("VM_STATE_CONFLICT", `a VM that is ${vm.state} takes no ${verb}`);
  }

  /** Throws VM_NOT_FOUND, also for another tenant's VM. */
  async getVm(scope: Scope, vmId: string): Promise<Vm> {
    const id = parseId("vm", vmId, "vm_id");
    const vm = this.#entries.get(id)?.driver.vm ?? (await this.#deps.store.get(id));
    if (!vm || (scope !== undefined && vm.tenantId !== scope)) {
      throw new ServiceError("VM_NOT_FOUND", `there is no VM ${id} on this host`);
    }
    return vm;
  }

  listVms(query: ListQuery): Promise<Vm[]> {
    return this.#deps.store.list(query);
  }

  /** The VM's address, empty once it has none. */
  addressOf(vm: Vm): string {
    const { instance, networks } = this.#deps;
    if (vm.slot === undefined || !networks.active) return "";
    return slotIdentity(instance, vm.slot).guestAddress;
  }

  watchVms(scope: Scope, vmId: VmId | undefined, signal: AbortSignal): AsyncGenerator<Vm> {
    const wants = (vm: Vm) => (scope === undefined || vm.tenantId === scope) && (vmId === undefined || vm.id === vmId);
    const current = async () =>
      vmId ? [await this.getVm(scope, vmId)] : (await this.#deps.store.alive()).filter(wants);
    return this.#hub.watch(wants, current, signal);
  }

  async *streamLogs(
    scope: Scope,
    vmId: string,
    options: {
      readonly source: LogSource;
      readonly follow: boolean;
      readonly tailLines: number;
      readonly signal: AbortSignal;
    },
  ): AsyncGenerator<LogPiece> {
    const { id } = await this.getVm(scope, vmId);
    const entry = this.#entries.get(id);
    if (!entry) return; // its logs went with it
    const over = new Set(["stopped", "failed", "deleting", "deleted"]);
    yield* entry.logs.stream(options.source, { ...options, isOver: () => over.has(entry.driver.vm.state) });
  }

  taken(): Promise<Resources & { readonly vmCount: number }> {
    return this.#deps.store.taken(this.#deps.clock.nowMs());
  }

  /** Refuses new VMs and ends those that are here, all at once; yields each when it has ended. */
  async *drain(options: { readonly deleteVms: boolean }): AsyncGenerator<Vm> {
    this.#draining = true;
    const failures: unknown[] = [];
    const running = new Map(
      Array.from(this.#entries, ([id, { driver }]) => [id, outcomeOf(id, endVm(driver, options.deleteVms))]),
    );
    while (running.size > 0) {
      const outcome = await Promise.race(running.values());
      running.delete(outcome.id);
      if (outcome.vm) yield outcome.vm;
      else failures.push(outcome.error);
    }
    if (failures.length > 0) {
      const message = `${failures.length} VMs could not be ended; metald goes on trying`;
      throw new ServiceError("HOST_RESOURCE_FAILED", message, { cause: failures[0] });
    }
  }

  /** Keeps logs below their limit. */
  async boundLogs(): Promise<void> {
    await Promise.all(Array.from(this.#entries.values(), ({ logs }) => logs.bound()));
  }

  /** Renews the leases of every VM; takes a new one where assetmanagerd has forgotten. */
  async renewLeases(signal: AbortSignal): Promise<void> {
    const { assets, log } = this.#deps;
    for (const { driver } of this.#entries.values()) {
      const { id, tenantId, leaseId } = driver.vm;
      if (leaseId === undefined) continue;
      try {
        await assets.renew(tenantId, leaseId, signal);
      } catch (error) {
        signal.throwIfAborted();
        log.warn("a lease could not be renewed", { vmId: id, leaseId, error });
        if (error instanceof ServiceError && error.code === "not_found") await driver.request("restage");
      }
    }
  }

  /** Resolves when no driver has anything to do. */
  async idle(): Promise<void> {
    await Promise.all(Array.from(this.#entries.values(), ({ driver }) => driver.idle()));
  }

  /** Lets go of every VM once the verbs that run have ended; none ends by it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.idle();
    for (const { driver } of this.#entries.values()) await driver.close();
    this.#entries.clear();
  }

  #enter(vm: Vm): Entry {
    const { instance, vmsDir, logLimitBytes, clock } = this.#deps;
    if (vm.slot === undefined) throw new Error(`${vm.id} has no slot`);
    const identity = slotIdentity(instance, vm.slot);
    const paths = vmPaths(vmsDir, vm.id);
    const logs = new VmLogs(paths, { ownerUid: identity.uid, limitBytes: logLimitBytes, clock });
    const driver = new VmDriver(vm, identity, paths, {
      ...this.#deps,
      lastLines: () => logs.lastLines(),
      onChange: (changed) => {
        if (changed.state === "deleted") this.#entries.delete(changed.id);
        this.#hub.publish(changed);
      },
    });
    const entry = { driver, logs };
    this.#entries.set(vm.id, entry);
    return entry;
  }
}

/** Same request, same hash; a reservation is not part of what is wished for. */
function hashOf(request: CreateVmRequest): string {
  const wish = create(CreateVmRequestSchema, { ...request, reservationId: "" });
  return createHash("sha256").update(toBinary(CreateVmRequestSchema, wish)).digest("hex");
}

async function endVm(driver: VmDriver, deleteVm: boolean): Promise<Vm> {
  const { state } = driver.vm;
  if (state !== "stopped" && state !== "failed" && state !== "deleting") {
    await driver.request("shutdown").catch((error: unknown) => {
      if (driver.vm.state !== "stopped" && driver.vm.state !== "failed") throw error;
    });
  }
  return driver.request(deleteVm || driver.vm.state === "deleting" ? "delete" : "release");
}

interface Outcome {
  readonly id: VmId;
  readonly vm?: Vm;
  readonly error?: unknown;
}

async function outcomeOf(id: VmId, ending: Promise<Vm>): Promise<Outcome> {
  try {
    return { id, vm: await ending };
  } catch (error) {
    return { id, error };
  }
}
