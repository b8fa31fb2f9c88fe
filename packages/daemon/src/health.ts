/** A layer of defence or speed that may or may not be active here: kvm, jail, cgroup, mtls. Nothing is implied. */
export interface Layer {
  readonly active: boolean;
  /** Why not, or which kind: one phrase. */
  readonly detail?: string;
}

interface Dependency {
  readonly required: boolean;
  readonly check: (signal: AbortSignal) => Promise<void> | void;
}

export interface DependencyReport {
  readonly ok: boolean;
  readonly required: boolean;
  readonly latencyMs: number;
  readonly error?: string;
}

export type DaemonState = "starting" | "running" | "stopping";

export interface HealthReport {
  readonly service: string;
  readonly status: "ok" | "degraded" | "starting" | "stopping";
  /** True while new work is welcome: running, and every required dependency answers. */
  readonly ready: boolean;
  readonly pid: number;
  readonly uptimeSeconds: number;
  readonly dependencies: Readonly<Record<string, DependencyReport>>;
  readonly layers: Readonly<Record<string, Layer>>;
  readonly addresses: Readonly<Record<string, string>>;
}

const checkDeadlineMs = 2000;
/** A monitor that polls fast must not become load on the dependency. */
const reportLifetimeMs = 1000;

/** What a daemon knows about its own state; `/health` and `/ready` show it. */
export class Health {
  state: DaemonState = "starting";
  readonly #service: string;
  readonly #addresses: ReadonlyMap<string, string>;
  readonly #startedAtMs = Date.now();
  readonly #dependencies = new Map<string, Dependency>();
  readonly #layers = new Map<string, Layer>();
  #checked: { readonly atMs: number; readonly reports: Promise<Record<string, DependencyReport>> } | undefined;

  constructor(service: string, addresses: ReadonlyMap<string, string>) {
    this.#service = service;
    this.#addresses = addresses;
  }

  /**
   * Watches something that the daemon needs: `check` throws while it does not answer. A required one makes the daemon
   * not ready; another makes it degraded. The message of a thrown error is shown on the loopback port.
   */
  dependency(name: string, check: Dependency["check"], options: { readonly required?: boolean } = {}): void {
    this.#dependencies.set(name, { check, required: options.required ?? true });
  }

  /** States whether a layer is active. Say so too when it is not. */
  layer(name: string, layer: Layer): void {
    this.#layers.set(name, layer);
  }

  async report(): Promise<HealthReport> {
    const nowMs = Date.now();
    if (this.#checked === undefined || nowMs - this.#checked.atMs > reportLifetimeMs) {
      this.#checked = { atMs: nowMs, reports: this.#checkAll() };
    }
    const dependencies = await this.#checked.reports;
    const failed = Object.values(dependencies).filter((dependency) => !dependency.ok);
    const status = this.state === "running" ? (failed.length === 0 ? "ok" : "degraded") : this.state;
    return {
      service: this.#service,
      status,
      ready: this.state === "running" && !failed.some((dependency) => dependency.required),
      pid: process.pid,
      uptimeSeconds: Math.floor((nowMs - this.#startedAtMs) / 1000),
      dependencies,
      layers: Object.fromEntries(this.#layers),
      addresses: Object.fromEntries(this.#addresses),
    };
  }

  async #checkAll(): Promise<Record<string, DependencyReport>> {
    const reports = [...this.#dependencies].map(async ([name, { check, required }]) => {
      const startedAtMs = performance.now();
      const error = await failureOf(check);
      const latencyMs = Math.round(performance.now() - startedAtMs);
      return [name, { ok: error === undefined, required, latencyMs, ...(error ? { error } : {}) }] as const;
    });
    return Object.fromEntries(await Promise.all(reports));
  }
}

async function failureOf(check: Dependency["check"]): Promise<string | undefined> {
  const deadline = new AbortController();
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const error = new Error(`no answer within ${checkDeadlineMs} ms`);
    deadline.abort(error);
    late.reject(error); // a check that ignores its signal must not hang the report
  }, checkDeadlineMs);
  try {
    // Called within the race: a check that throws at once must not leave `late` without a listener.
    await Promise.race([late.promise, (async () => check(deadline.signal))()]);
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    clearTimeout(timer);
  }
}
