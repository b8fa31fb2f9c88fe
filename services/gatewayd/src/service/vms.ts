import type { LogSource } from "@unkey/api/metal";
import { type Vm, VmState } from "@unkey/api/metal";
import type { AppId, Clock, TenantId, VmId } from "@unkey/base";
import { ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import { describedByRow, type Fleet, gone, type VmVerb } from "../adapters/fleet.ts";
import type { Acting, Platform } from "../adapters/platform.ts";
import { inParallel } from "../deploy/in-parallel.ts";
import type { RouteTable } from "../ports.ts";
import type { AppStore } from "../store/app-store.ts";
import type { VmRow } from "../store/rows.ts";
import { merge } from "./merge.ts";
import { nextPageToken, readPage } from "./page.ts";

const maxParallel = 8;
/** A list is worth more in time than complete: a host that takes longer counts as not answering. */
const describeTimeoutMs = 5000;
const startHoldMs = 5 * 60_000;
const watchAgainMs = 1000;

export interface VmServiceDeps {
  readonly store: AppStore;
  readonly platform: Platform;
  readonly fleet: Fleet;
  readonly routes: RouteTable;
  readonly clock: Clock;
  readonly log: Logger;
}

/** VMs of a tenant. Which there are is known here, how they are their hosts know. */
export class VmService {
  readonly #deps: VmServiceDeps;

  constructor(deps: VmServiceDeps) {
    this.#deps = deps;
  }

  /** What the hosts say of `rows`, in their order. Of a VM whose host does not answer the state is UNSPECIFIED. */
  async describe(acting: Acting, rows: readonly VmRow[], signal: AbortSignal): Promise<Vm[]> {
    const { fleet, log } = this.#deps;
    const limited = AbortSignal.any([signal, AbortSignal.timeout(describeTimeoutMs)]);
    const seen = new Map<VmId, Vm>();
    await inParallel(rows, maxParallel, async (row) => {
      if (isGone(row)) {
        seen.set(row.vmId, gone(row));
        return;
      }
      const vm = await fleet.get(row, acting, limited).catch((error: unknown) => {
        signal.throwIfAborted();
        log.debug("a VM cannot be described", { vmId: row.vmId, error });
        return describedByRow(row, VmState.UNSPECIFIED);
      });
      seen.set(row.vmId, vm);
    });
    return rows.flatMap((row) => seen.get(row.vmId) ?? []);
  }

  async get(acting: Acting, vmId: VmId, signal: AbortSignal): Promise<Vm> {
    const row = await this.#deps.store.getVm(acting.tenantId, vmId);
    return isGone(row) ? gone(row) : this.#deps.fleet.get(row, acting, signal);
  }

  async list(
    acting: Acting,
    request: {
      readonly app: string;
      readonly includeDeleted: boolean;
      readonly pageSize: number;
      readonly pageToken: string;
    },
    signal: AbortSignal,
  ) {
    const page = readPage(request);
    const rows = await this.#deps.store.listVms({
      tenantId: acting.tenantId,
      appId: await this.#appIdOf(acting.tenantId, request.app),
      includeDeleted: request.includeDeleted,
      limit: page.limit,
      beforeId: page.after,
    });
    const appIds = [...new Set(rows.map(({ appId }) => appId))];
    return {
      vms: await this.describe(acting, rows, signal),
      appNames: Object.fromEntries(await this.#deps.store.names(acting.tenantId, appIds)),
      nextPageToken: nextPageToken(page, rows, (row) => row.vmId),
    };
  }

  /** Every VM of the tenant, or of one app, as it is now, then each change; a host that falls silent is asked again. */
  async *watch(acting: Acting, appName: string, signal: AbortSignal): AsyncGenerator<Vm> {
    const appId = await this.#appIdOf(acting.tenantId, appName);
    const hosts = await this.#deps.platform.hosts.reachable();
    const ended = new AbortController();
    const all = AbortSignal.any([signal, ended.signal]);
    try {
      for await (const vm of merge(hosts.map(({ hostId }) => this.#watchHost(hostId, acting, all)))) {
        if (appId === "" || vm.appId === appId) yield vm;
      }
    } finally {
      ended.abort();
    }
    signal.throwIfAborted();
  }

  async *#watchHost(hostId: string, acting: Acting, signal: AbortSignal): AsyncGenerator<Vm> {
    const { platform, clock, log } = this.#deps;
    const { tenantId } = acting;
    while (!signal.aborted) {
      try {
        const metal = await platform.hosts.client(hostId);
        yield* metal.watchVms({ tenantId }, platform.call(acting, { signal }));
      } catch (error) {
        if (signal.aborted) return;
        log.debug("a host's VMs cannot be followed now", { hostId, error });
      }
      await clock.sleep(watchAgainMs, signal).catch(() => undefined);
    }
  }

  async act(acting: Acting, vmId: VmId, verb: Exclude<VmVerb, "bootVm">, signal: AbortSignal): Promise<Vm> {
    const { store, fleet } = this.#deps;
    return this.#saw(await fleet.act(mustLive(await store.getVm(acting.tenantId, vmId)), verb, acting, signal));
  }

  /** Boots a VM. Until that is done it stays wanted stopped, which is what it is again if this replica dies. */
  async start(acting: Acting, vmId: VmId, signal: AbortSignal): Promise<Vm> {
    const { store, fleet, routes, clock } = this.#deps;
    const row = mustLive(await store.beginVmStart(acting.tenantId, vmId, clock.nowMs() + startHoldMs));
    let seen: Vm;
    try {
      seen = await fleet.act(row, "bootVm", acting, signal);
    } catch (error) {
      await store.endHold([row]);
      throw error;
    }
    await this.#saw(seen);
    await store.commitStart([row]);
    await routes.refresh();
    return seen;
  }

  async stop(acting: Acting, vmId: VmId, force: boolean, signal: AbortSignal): Promise<Vm> {
    const { store, fleet, routes } = this.#deps;
    const row = mustLive(await store.wantVm(acting.tenantId, vmId, "stopped"));
    await routes.refresh();
    const seen = await fleet.shutdown(row, force, acting, signal);
    await store.settle(row, seen);
    return seen;
  }

  async delete(acting: Acting, vmId: VmId, signal: AbortSignal): Promise<Vm> {
    const { store, fleet, routes } = this.#deps;
    const row = await store.wantVm(acting.tenantId, vmId, "deleted");
    await routes.refresh();
    if (isGone(row)) return gone(row);
    const seen = await fleet.remove(row, true, acting, signal);
    await store.settle(row, seen);
    return seen;
  }

  /** Output of the named VM, or of the app's newest. */
  async *logs(
    acting: Acting,
    request: {
      readonly app: string;
      readonly vmId: VmId | "";
      readonly source: LogSource;
      readonly follow: boolean;
      readonly tailLines: number;
    },
    signal: AbortSignal,
  ) {
    const vm = await this.#vmOf(acting.tenantId, request.app, request.vmId);
    const { source, follow, tailLines } = request;
    for await (const chunk of this.#deps.fleet.logs(vm, { source, follow, tailLines }, acting, { signal })) {
      yield { vmId: vm.vmId, data: chunk.data, droppedBytes: chunk.droppedBytes };
    }
  }

  async #vmOf(tenantId: TenantId, appName: string, vmId: VmId | ""): Promise<VmRow> {
    const { store } = this.#deps;
    if (appName === "" && vmId === "")
      throw new ServiceError("INVALID_REQUEST", "app, vm_id: one of them must be given");
    const app = appName === "" ? undefined : await store.latest(tenantId, appName);
    if (vmId !== "") {
      const vm = await store.getVm(tenantId, vmId);
      if (app && vm.appId !== app.appId) {
        throw new ServiceError("INVALID_REQUEST", `vm_id: ${vmId} is not a VM of the app ${appName}`);
      }
      return vm;
    }
    const vm = app && (await store.newestVm(tenantId, app.appId));
    if (!vm) throw new ServiceError("APP_NOT_DEPLOYED", `the app ${appName} never had a VM`);
    return vm;
  }

  async #appIdOf(tenantId: TenantId, appName: string): Promise<AppId | ""> {
    return appName === "" ? "" : (await this.#deps.store.latest(tenantId, appName)).appId;
  }

  async #saw(vm: Vm): Promise<Vm> {
    await this.#deps.store.sawVm(vm);
    return vm;
  }
}

function isGone(row: VmRow): boolean {
  return row.wanted === "deleted" && row.settled;
}

function mustLive(row: VmRow): VmRow {
  if (row.wanted !== "deleted") return row;
  throw new ServiceError("VM_STATE_CONFLICT", `${row.vmId} is deleted`, { nextStep: "Deploy the app again." });
}
