import type { App } from "@unkey/api/gateway";
import type { Clock, DeploymentId, TenantId } from "@unkey/base";
import { isServiceError, ServiceError } from "@unkey/base";
import type { Caller } from "@unkey/rpc";
import type { Fleet } from "../adapters/fleet.ts";
import type { Acting } from "../adapters/platform.ts";
import type { AppObserver } from "../deploy/app-observer.ts";
import { inParallel } from "../deploy/in-parallel.ts";
import { AppFailed } from "../deploy/step.ts";
import type { VmSettler } from "../deploy/vm-settler.ts";
import { defaultHealthDeadlineMs } from "../deploy/vm-steps.ts";
import type { RouteTable } from "../ports.ts";
import type { AppStore } from "../store/app-store.ts";
import type { DeploymentStore } from "../store/deployment-store.ts";
import type { AppRow, VmRow } from "../store/rows.ts";
import { nextPageToken, readPage } from "./page.ts";
import { appView, type UrlOf } from "./views.ts";
import type { VmService } from "./vms.ts";

const maxParallel = 4;
/** Requests that run when an app is stopped may still finish for so long. */
const drainMs = 3000;
/** A start that dies leaves its VMs alone for so long; then they are stopped again. */
const startHoldMs = 15 * 60_000;
const cleanUpMs = 60_000;

export interface AppServiceDeps {
  readonly store: AppStore;
  readonly deployments: DeploymentStore;
  readonly vms: VmService;
  readonly fleet: Fleet;
  readonly observer: AppObserver;
  readonly settler: VmSettler;
  readonly routes: RouteTable;
  readonly clock: Clock;
  readonly urlOf: UrlOf;
}

/** Apps and the verbs on all of their VMs. */
export class AppService {
  readonly #deps: AppServiceDeps;

  constructor(deps: AppServiceDeps) {
    this.#deps = deps;
  }

  async list(acting: Acting, request: { readonly pageSize: number; readonly pageToken: string }, signal: AbortSignal) {
    const page = readPage(request);
    const apps = await this.#deps.store.list(acting.tenantId, page.limit, page.after);
    return {
      apps: await this.#views(acting, apps, signal),
      nextPageToken: nextPageToken(page, apps, (app) => app.name),
    };
  }

  async get(acting: Acting, name: string, signal: AbortSignal): Promise<App> {
    return this.#view(acting, await this.#deps.store.get(acting.tenantId, name), signal);
  }

  /** Takes the app off the ingress and stops its VMs in order. */
  async stop(acting: Acting, name: string, signal: AbortSignal): Promise<App> {
    const { store } = this.#deps;
    await this.#settleAll(await store.stopApp(acting.tenantId, name), signal);
    return this.get(acting, name, signal);
  }

  /** Boots the app's VMs and routes to them once they serve. On failure they are stopped again. */
  async start(acting: Acting, name: string, signal: AbortSignal): Promise<App> {
    const { store, fleet, observer, routes, clock } = this.#deps;
    const { tenantId } = acting;
    const app = await store.get(tenantId, name);
    if (app.deploymentId === "") throw new ServiceError("APP_NOT_DEPLOYED", `the app ${name} was never deployed`);
    const check = await this.#checkOf(tenantId, app.deploymentId);
    const vms = await store.beginStart(tenantId, name, clock.nowMs() + startHoldMs);
    try {
      await inParallel(vms, maxParallel, async (vm) => {
        const seen = await fleet.act(vm, "bootVm", acting, signal).catch(async (error: unknown) => {
          throw await observer.explain(vm, error, acting, signal);
        });
        await store.sawVm(seen);
        const plan = { ...check, deadlineAtMs: clock.nowMs() + check.deadlineMs };
        await observer.untilHealthy({ ...vm, ipAddress: seen.ipAddress }, plan, acting, signal);
      });
      await store.commitStart(vms);
    } catch (error) {
      await this.#giveUpStart(vms);
      throw withOutput(error);
    }
    await routes.refresh();
    return this.get(acting, name, signal);
  }

  /** Deletes the app with its VMs. Deleting it again answers the deleted app. */
  async delete(acting: Acting, name: string, signal: AbortSignal): Promise<App> {
    const { store, clock } = this.#deps;
    const app = await store.latest(acting.tenantId, name);
    if (app.state !== "deleted") {
      await this.#settleAll(await store.beginDelete(acting.tenantId, name), signal);
      await store.finishDeletes(clock.nowMs());
    }
    return this.#view(acting, await store.latest(acting.tenantId, name), signal);
  }

  async #settleAll(vms: readonly VmRow[], signal: AbortSignal): Promise<void> {
    const { routes, settler } = this.#deps;
    await routes.refresh();
    const ids = vms.map((vm) => vm.vmId);
    await routes.drain(ids, drainMs, signal);
    await inParallel(vms, maxParallel, async (vm) => {
      try {
        await settler.settle(vm, { graceful: true, signal });
      } catch (error) {
        if (!isServiceError(error)) throw error;
        throw new ServiceError(error.reason, `${vm.vmId} is not ${vm.wanted} yet: ${error.message}`, {
          cause: error,
          nextStep: "Nothing: it is tried again until it succeeds. Look at the app in a while.",
        });
      }
    });
  }

  /** The VMs stay wanted as they were; those that were stopped are stopped again, now or by the settling pass. */
  async #giveUpStart(vms: readonly VmRow[]): Promise<void> {
    const { store, settler } = this.#deps;
    await store.endHold(vms);
    // The caller's deadline may be what failed: cleaning up has its own.
    const signal = AbortSignal.timeout(cleanUpMs);
    const stopped = vms.filter((vm) => vm.wanted === "stopped");
    await inParallel(stopped, maxParallel, async (vm) => {
      await settler.settle(vm, { graceful: true, signal }).catch(() => undefined);
    });
  }

  async #checkOf(tenantId: TenantId, deploymentId: DeploymentId) {
    const { port, request } = await this.#deps.deployments.get(tenantId, deploymentId);
    const { healthCheck } = request;
    return {
      port,
      httpPath: healthCheck?.httpPath ?? "",
      deadlineMs: (healthCheck?.deadlineMs ?? 0) || defaultHealthDeadlineMs,
    };
  }

  async #view(acting: Acting, app: AppRow, signal: AbortSignal): Promise<App> {
    const [view] = await this.#views(acting, [app], signal);
    if (!view) throw new Error("one app has one view");
    return view;
  }

  async #views(acting: Acting, apps: readonly AppRow[], signal: AbortSignal): Promise<App[]> {
    const { store, deployments, vms, urlOf } = this.#deps;
    const { tenantId } = acting;
    const rows = await store.releaseVms(tenantId, apps);
    const seen = await vms.describe(acting, rows, signal);
    const views: App[] = [];
    for (const app of apps) {
      const release = app.deploymentId === "" ? undefined : await deployments.get(tenantId, app.deploymentId);
      const own = rows.flatMap((row, index) => {
        const vm = seen[index];
        return row.deploymentId === app.deploymentId && vm ? [{ row, vm }] : [];
      });
      views.push(appView(app, release, own, urlOf));
    }
    return views;
  }
}

/** A failed start has no deployment to show the app's output in. */
function withOutput(error: unknown): unknown {
  if (!(error instanceof AppFailed) || error.lastLines.length === 0) return error;
  const { reason, message, cause, nextStep, metadata } = error;
  const lastLines = error.lastLines.join("\n").slice(-4096);
  return new ServiceError(reason, message, { cause, nextStep, metadata: { ...metadata, lastLines } });
}

/** The caller of an RPC, for the calls that it leads to. */
export function actingOf(caller: Caller): Acting {
  const { tenantId, subject, roles, requestId } = caller;
  if (tenantId === undefined || subject === undefined) throw new Error("a public call without a tenant");
  return { tenantId, subject, roles, requestId };
}
