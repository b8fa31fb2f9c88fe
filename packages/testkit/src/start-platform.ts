import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as assetmanagerd from "@unkey/assetmanagerd";
import * as billaged from "@unkey/billaged";
import * as aggregator from "@unkey/billing-aggregator";
import * as builderd from "@unkey/builderd";
import { drainHost, openHome, unkeyPlatform } from "@unkey/cli/dev";
import { type RunningDaemon, type ServiceName, startDaemon } from "@unkey/daemon";
import * as gatewayd from "@unkey/gatewayd";
import * as metald from "@unkey/metald";

export interface PlatformOptions {
  /** Settings as an operator gives them: UNKEY_<SERVICE>_*. Ports are chosen by the system whatever they say. */
  readonly env?: Readonly<Record<string, string>>;
  /** Where kernel and initramfs are kept between platforms; a folder of this platform unless told. */
  readonly guestDir?: string;
  /** Takes every log line; thrown away unless told. */
  readonly log?: (line: string) => void;
}

/**
 * All six daemons in this process, over real sockets with mutual TLS. Disposal ends the VMs (unless the test has stopped
 * metald itself), stops the daemons and removes every file.
 */
export interface Platform extends AsyncDisposable {
  /** The folder that `unkey dev up` would call UNKEY_HOME. */
  readonly home: string;
  readonly apiUrl: string;
  /** `host:port` of the apps' listener. */
  readonly ingressAddress: string;
  readonly apiKey: string;
  /** PEM of the authority that certifies the API and the apps. */
  readonly caPem: string;
  readonly daemon: (name: ServiceName) => RunningDaemon;
}

type Starter = (env: Readonly<Record<string, string>>, write: (line: string) => void) => Promise<RunningDaemon>;

const starters: Readonly<Record<ServiceName, Starter>> = {
  assetmanagerd: (env, write) =>
    startDaemon({
      name: "assetmanagerd",
      env,
      write,
      readConfig: assetmanagerd.readConfig,
      start: assetmanagerd.startAssetManager,
    }),
  "billing-aggregator": (env, write) =>
    startDaemon({
      name: "billing-aggregator",
      env,
      write,
      readConfig: aggregator.readConfig,
      start: aggregator.startBillingAggregator,
    }),
  billaged: (env, write) =>
    startDaemon({ name: "billaged", env, write, readConfig: billaged.readConfig, start: billaged.startBillaged }),
  builderd: (env, write) =>
    startDaemon({ name: "builderd", env, write, readConfig: builderd.readConfig, start: builderd.startBuilderd }),
  metald: (env, write) =>
    startDaemon({ name: "metald", env, write, readConfig: metald.readConfig, start: metald.startMetald }),
  gatewayd: (env, write) =>
    startDaemon({ name: "gatewayd", env, write, readConfig: gatewayd.readConfig, start: gatewayd.startGatewayd }),
};

/** Starts the platform of this repository the way `unkey dev up` does, but in one process. */
export async function startPlatform(options: PlatformOptions = {}): Promise<Platform> {
  const { env = {}, log = () => undefined } = options;
  await using stack = new AsyncDisposableStack();
  const root = await mkdtemp(join(tmpdir(), "unkey-platform-"));
  stack.defer(() => rm(root, { recursive: true, force: true }));
  const opened = openHome(root);
  const home = options.guestDir === undefined ? opened : { ...opened, guestDir: options.guestDir };
  const platform = unkeyPlatform(home, env);
  for (const task of platform.tasks) await task.run(log, new AbortController().signal);

  const daemons = new Map<string, RunningDaemon>();
  for (const spec of platform.daemons) {
    const ports = Object.fromEntries(Object.keys(spec.ports).map((endpoint) => [endpoint, 0]));
    const start = starters[spec.name as ServiceName];
    daemons.set(spec.name, stack.use(await start(spec.environment({ home, ports }), log)));
  }
  const daemon = (name: ServiceName): RunningDaemon => {
    const found = daemons.get(name);
    if (!found) throw new Error(`${name} does not run`);
    return found;
  };
  // VMs outlive their metald, and here nobody would come to adopt them.
  stack.defer(async () => {
    if (daemon("metald").health.state === "running") await drainHost(home, true, () => undefined);
  });
  const gateway = daemon("gatewayd");
  const dataDir = home.dataDir("gatewayd");
  const [apiKey, caPem] = await Promise.all([
    readFile(join(dataDir, "bootstrap-key"), "utf8"),
    readFile(join(dataDir, "ingress-ca.crt"), "utf8"),
  ]);
  const owned = stack.move();
  return {
    home: root,
    apiUrl: `https://${gateway.addresses.get("rpc")}`,
    ingressAddress: gateway.addresses.get("ingress") ?? "",
    apiKey: apiKey.trim(),
    caPem,
    daemon,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
