import { readFile, rm } from "node:fs/promises";
import { isIPv6 } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { writeFileAtomic } from "./atomic-file.ts";
import { Health } from "./health.ts";
import { listenHealth } from "./health-server.ts";
import { createLogger, type Logger, logLevels } from "./log.ts";
import { Metrics } from "./metrics.ts";
import { collectProcessMetrics } from "./process-metrics.ts";
import { Settings } from "./settings.ts";

/** The six services and the loopback port of each one's `/health`, `/ready` and `/metrics`. */
export const healthPorts = {
  gatewayd: 9464,
  metald: 9465,
  billaged: 9466,
  builderd: 9467,
  assetmanagerd: 9468,
  "billing-aggregator": 9469,
} as const;

export type ServiceName = keyof typeof healthPorts;

/** What the kit lends to a daemon. */
export interface DaemonContext {
  readonly name: ServiceName;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly health: Health;
  /**
   * Aborted when draining has taken longer than the grace period (or at the second stop signal): what still runs is
   * cut off. Join it to every long-lived signal; it stays quiet during an orderly stop.
   */
  readonly abort: AbortSignal;
  /** Aborted as soon as a stop is asked for: refuse new work, end open-ended streams. */
  readonly stopping: AbortSignal;
  /** Makes a listening address known: in `/health`, in the log and in the address file. */
  readonly announce: (name: string, host: string, port: number) => void;
}

/** Reads a service's own settings; the kit adds its own and refuses unknown ones. */
export type ReadConfig<Config> = (settings: Settings) => Config;
/** Starts a service; disposing what it answers drains and closes everything. */
export type Start<Config> = (config: Config, context: DaemonContext) => Promise<AsyncDisposable>;

export interface DaemonOptions<Config> {
  readonly name: ServiceName;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly readConfig: ReadConfig<Config>;
  readonly start: Start<Config>;
  /** Takes log lines instead of stdout: for tests and for several daemons in one process. */
  readonly write?: (line: string) => void;
}

export interface RunningDaemon extends AsyncDisposable {
  readonly name: ServiceName;
  readonly log: Logger;
  readonly health: Health;
  readonly metrics: Metrics;
  /** Listening addresses as `host:port`, by name: `rpc`, `health` and what the service announced. */
  readonly addresses: ReadonlyMap<string, string>;
  /** Refuse, drain, and abort at the grace deadline. True when everything closed; calling it again joins the first. */
  stop(): Promise<boolean>;
  /** Skips what is left of draining. */
  abort(): void;
}

/** The settings that every daemon has beside its own. */
function readKitSettings(settings: Settings, name: ServiceName) {
  return {
    logLevel: settings.oneOf("LOG_LEVEL", logLevels, { default: "info" }),
    healthPort: settings.port("HEALTH_PORT", { default: healthPorts[name] }),
    graceMs: settings.durationMs("GRACE", { min: 0, max: 600_000, default: 10_000 }),
    addressFile: settings.path("ADDRESS_FILE", { default: undefined }),
  };
}

/** How long an aborted daemon may still take to close its files before it is given up. */
const abortedCloseMs = 2000;

/**
 * Starts a daemon in this process without touching the process itself (signals, exit): what `runDaemon` and tests
 * share. Throws ConfigError for wrong settings, and whatever `start` throws.
 */
export async function startDaemon<Config>(options: DaemonOptions<Config>): Promise<RunningDaemon> {
  const { name, env } = options;
  const settings = new Settings(name, env);
  const kit = readKitSettings(settings, name);
  const config = options.readConfig(settings);
  settings.done();

  const log = createLogger({
    level: kit.logLevel,
    fields: { service: name, pid: process.pid },
    ...(options.write ? { write: options.write } : {}),
  });
  const addresses = new Map<string, string>();
  const health = new Health(name, addresses);
  const metrics = new Metrics();
  const stopping = new AbortController();
  const abort = new AbortController();

  await using stack = new AsyncDisposableStack();
  stack.use(collectProcessMetrics(metrics));
  const healthServer = stack.use(await listenHealth(kit.healthPort, health, metrics));
  addresses.set("health", healthServer.address);
  const { addressFile } = kit;
  if (addressFile !== undefined) {
    await rm(addressFile, { force: true }); // a predecessor's addresses must not be taken for ours
    stack.defer(() => removeOwn(addressFile));
  }
  stack.use(
    await options.start(config, {
      name,
      log,
      metrics,
      health,
      abort: abort.signal,
      stopping: stopping.signal,
      announce: (key, host, port) => void addresses.set(key, isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`),
    }),
  );
  health.state = "running";
  if (addressFile !== undefined) {
    const content = { service: name, pid: process.pid, addresses: Object.fromEntries(addresses) };
    await writeFileAtomic(addressFile, `${JSON.stringify(content)}\n`);
  }
  log.info("started", { addresses: Object.fromEntries(addresses) });
  const owned = stack.move();

  const close = async (): Promise<boolean> => {
    const startedAtMs = performance.now();
    health.state = "stopping";
    stopping.abort(new Error(`${name} is stopping`));
    const closed = owned.disposeAsync().then(
      () => true,
      (error: unknown) => {
        log.error("stop failed", { error });
        return false;
      },
    );
    const grace = new AbortController();
    void delay(kit.graceMs, undefined, { signal: grace.signal }).then(
      () => abort.abort(new Error(`${name}: grace period of ${kit.graceMs} ms is over`)),
      () => undefined,
    );
    const givenUp = Promise.withResolvers<false>();
    const onAbort = () => void setTimeout(() => givenUp.resolve(false), abortedCloseMs).unref();
    if (abort.signal.aborted) onAbort();
    else abort.signal.addEventListener("abort", onAbort, { once: true });
    const clean = await Promise.race([closed, givenUp.promise]);
    grace.abort();
    log.info("stopped", {
      clean,
      aborted: abort.signal.aborted,
      tookMs: Math.round(performance.now() - startedAtMs),
    });
    return clean;
  };
  let closing: Promise<boolean> | undefined;
  const stop = () => (closing ??= close());
  return {
    name,
    log,
    health,
    metrics,
    addresses,
    stop,
    abort: () => abort.abort(new Error(`${name}: told to stop at once`)),
    [Symbol.asyncDispose]: async () => void (await stop()),
  };
}

/** A successor may already have written its own address file. */
async function removeOwn(path: string): Promise<void> {
  const content = await readFile(path, "utf8").catch(() => "");
  if (content.includes(`"pid":${process.pid},`)) await rm(path, { force: true });
}
