import type { Logger } from "@unkey/daemon";
import type { RouteTable } from "../ports.ts";
import type { AppStore } from "../store/app-store.ts";
import { Upstream } from "./upstream.ts";

export interface AppRoute {
  readonly appName: string;
  /** It has a release; without upstreams it is stopped. */
  readonly deployed: boolean;
  readonly upstreams: readonly Upstream[];
}

/** Connections of a VM that lost its route without anybody waiting for it live at most so long. */
const forgottenMs = 30_000;

/** The routes in memory. The database is asked only for its revision, unless that has changed. */
export class RouteMap implements RouteTable, AsyncDisposable {
  readonly #store: AppStore;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #routes = new Map<string, AppRoute>();
  #upstreams = new Map<string, Upstream>();
  readonly #retiring = new Map<
    string,
    { readonly upstream: Upstream; readonly done: Promise<void>; readonly end: AbortController }
  >();
  #revision = -1;
  #refreshing: Promise<void> = Promise.resolve();

  constructor(deps: { readonly store: AppStore; readonly log: Logger }) {
    this.#store = deps.store;
    this.#log = deps.log;
  }

  find(appName: string): AppRoute | undefined {
    return this.#routes.get(appName);
  }

  /** Each refresh begins after the one before: whoever awaits it sees what was committed before the call. */
  refresh(): Promise<void> {
    const next = this.#refreshing.then(() => this.#load());
    this.#refreshing = next.catch(() => undefined);
    return next;
  }

  async #load(): Promise<void> {
    if ((await this.#store.routeRevision()) === this.#revision) return;
    const { revision, routes } = await this.#store.routes();
    const upstreams = new Map<string, Upstream>();
    const byApp = new Map<string, AppRoute>();
    for (const { appName, deploymentId, port, upstreams: vms } of routes) {
      const own = vms.map(({ vmId, ipAddress }) => {
        const known = this.#upstreams.get(vmId);
        const same = known?.host === ipAddress && known.port === port;
        const upstream = same ? known : new Upstream(vmId, ipAddress, port);
        upstreams.set(vmId, upstream);
        return upstream;
      });
      byApp.set(appName, { appName, deployed: deploymentId !== "", upstreams: own });
    }
    const replaced = [...this.#upstreams.values()].filter((old) => upstreams.get(old.vmId) !== old);
    this.#routes = byApp;
    this.#upstreams = upstreams;
    this.#revision = revision;
    for (const upstream of replaced) this.#retire(upstream);
  }

  #retire(upstream: Upstream): void {
    const end = new AbortController();
    const signal = AbortSignal.any([this.#stop.signal, end.signal]);
    const done = upstream
      .retire(forgottenMs, signal)
      .catch((error: unknown) => this.#log.warn("connections to a VM were not closed", { vmId: upstream.vmId, error }))
      .finally(() => {
        if (this.#retiring.get(upstream.vmId)?.upstream === upstream) this.#retiring.delete(upstream.vmId);
      });
    this.#retiring.set(upstream.vmId, { upstream, done, end });
  }

  async drain(vmIds: readonly string[], withinMs: number, signal: AbortSignal): Promise<void> {
    const leaving = vmIds.flatMap((vmId) => this.#retiring.get(vmId) ?? []);
    if (leaving.length === 0) return;
    const cut = () => leaving.forEach(({ end }) => end.abort());
    const timer = setTimeout(cut, withinMs);
    signal.addEventListener("abort", cut, { once: true });
    if (signal.aborted) cut();
    await Promise.all(leaving.map(({ done }) => done));
    clearTimeout(timer);
    signal.removeEventListener("abort", cut);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#refreshing;
    await Promise.all([...this.#retiring.values()].map(({ done }) => done));
    await Promise.all([...this.#upstreams.values()].map((upstream) => upstream.retire(0, this.#stop.signal)));
  }
}

/** Of two drawn at random the one with fewer requests; one that refused a connection lately only when there is no other. */
export function pickUpstream(
  route: AppRoute,
  nowMs: number,
  random: () => number,
  except?: Upstream,
): Upstream | undefined {
  const others = route.upstreams.filter((upstream) => upstream !== except && !upstream.full);
  const trusted = others.filter((upstream) => !upstream.isSuspect(nowMs));
  const candidates = trusted.length > 0 ? trusted : others;
  const draw = () => candidates[Math.floor(random() * candidates.length)];
  const [a, b] = [draw(), draw()];
  return a && b && b.running < a.running ? b : a;
}
