import { mkdir, statfs } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { AssetService } from "@unkey/api/asset";
import { MeteringService } from "@unkey/api/metering";
import { ServiceError, systemClock } from "@unkey/base";
import { LinuxCgroups } from "@unkey/cgroup";
import { type DaemonContext, everyMs, lockDataDir } from "@unkey/daemon";
import { ensureGuestAssets } from "@unkey/guest";
import { listenRpc, openIdentity, openRpcChannel } from "@unkey/rpc";
import { openSqlite } from "@unkey/sql";
import { type Hypervisor, MemoryHypervisor, type ProbeResult, QemuHypervisor } from "@unkey/vmm";
import { ensureBootAssets } from "./adapters/boot-assets.ts";
import { LinuxCounterSource } from "./adapters/linux-counter-source.ts";
import { MemoryCgroups, MemoryCounters, MemoryNetworks } from "./adapters/memory-host.ts";
import { ProvenanceCheck } from "./adapters/provenance-check.ts";
import { hostResolvers } from "./adapters/resolvers.ts";
import { leaseMs, RpcAssets } from "./adapters/rpc-assets.ts";
import { migrations } from "./adapters/schema.ts";
import { SqlSeriesStore } from "./adapters/sql-series-store.ts";
import { SqlVmStore } from "./adapters/sql-vm-store.ts";
import { VmDisks } from "./adapters/vm-disks.ts";
import type { Config } from "./config.ts";
import { tickMs } from "./domain/sample.ts";
import { parseSubnet } from "./domain/subnet.ts";
import { findAccelerator } from "./find-accelerator.ts";
import { metalRoutes } from "./handlers.ts";
import { HostView } from "./host-view.ts";
import { MeteringLink } from "./metering/metering-link.ts";
import { Sampler } from "./metering/sampler.ts";
import { onWallClock } from "./metering/wall-clock-ticks.ts";
import { instanceIdOf, openNetworks } from "./open-instance.ts";
import type { Cgroups, CounterSource, Networks, VmStore } from "./ports.ts";
import { reconcileHost } from "./reconcile.ts";
import { MetalService } from "./service.ts";

const logPassMs = 250;
const leasePassMs = leaseMs / 3;
const rulesPassMs = 30_000;
/** For callers that name no deadline: two boots on a slow host, or the longest grace of a program. */
const verbTimeoutMs = 15 * 60_000;
/** For a single request to a hypervisor process. */
const hypervisorTimeoutMs = 10_000;

/** What VMs stand on: the real host, or stand-ins where no guest is run. */
interface Ground {
  readonly hypervisor: Hypervisor;
  readonly networks: Networks;
  readonly cgroups: Cgroups;
  readonly counters: CounterSource;
  readonly disks: VmDisks;
  readonly subnet: ReturnType<typeof parseSubnet>;
  readonly isReal: boolean;
}

export async function startMetald(config: Config, context: DaemonContext): Promise<AsyncDisposable> {
  const { log, metrics, health } = context;
  const clock = systemClock;
  await using stack = new AsyncDisposableStack(); // closes in reverse order, also when a later line throws
  const identity = stack.adopt(openIdentity(config.rpc, context), (source) => source[Symbol.dispose]());
  const vmsDir = join(config.dataDir, "vms");
  await mkdir(vmsDir, { recursive: true, mode: 0o711 });
  stack.use(lockDataDir("metald", config.dataDir));
  const instanceId = await instanceIdOf(config.dataDir);
  const sql = stack.use(await openSqlite({ path: join(config.dataDir, "metald.db"), migrations }));
  const store = new SqlVmStore(sql);
  const series = new SqlSeriesStore(sql);
  const hostId = await store.hostId();

  const connect = (peer: "assetmanagerd" | "billaged") =>
    stack.use(openRpcChannel({ peer, address: config[peer], identity, metrics }));
  const assetChannel = connect("assetmanagerd");
  const meteringChannel = connect("billaged");
  health.dependency("assetmanagerd", () => assetChannel.ping(), { required: false });
  health.dependency("billaged", () => meteringChannel.ping(), { required: false });

  const ground = await openGround(config, { instanceId, store, log, stack });
  const { hypervisor, networks, cgroups, counters, disks, subnet, isReal } = ground;
  const instance = { id: instanceId, subnet, uidBase: config.uidBase };

  // Aborted when nothing needs what is made ready for VMs any more.
  const closing = new AbortController();
  const untilClosing = AbortSignal.any([context.abort, closing.signal]);
  const guestAssets = once(() =>
    ensureGuestAssets({ cacheDir: config.guestDir, log: (detail) => log.info(detail), signal: untilClosing }),
  );
  const assetClient = assetChannel.client(AssetService);
  const bootAssets = once(async () => ensureBootAssets(assetClient, store, await guestAssets()));
  let probed: ProbeResult | undefined;
  const probe = once(async () => {
    const guest = isReal ? await guestAssets() : { kernelPath: "/none", initrdPath: "/none" };
    const deps = { hypervisor, store, disks, probeDir: join(config.dataDir, "probe"), log };
    probed = await findAccelerator(deps, guest, untilClosing);
    return probed;
  });

  const link = stack.use(
    new MeteringLink({
      client: meteringChannel.client(MeteringService),
      series,
      hostId,
      epoch: await store.nextEpoch(),
      clock,
      log,
    }),
  );
  const sampler = stack.adopt(new Sampler({ clock, onTick: (tick) => link.push(tick) }), (s) => s.close());
  const capacity = {
    vcpuCount: config.vcpuCapacity,
    maxVcpusPerVm: availableParallelism(),
    memoryBytes: config.memoryCapacityBytes,
    diskBytes: await diskBytes(config.dataDir),
  };
  const quarantined = await reconcileHost({ store, networks, cgroups, disks, hypervisor, instance, vmsDir, log });
  const service = stack.use(
    new MetalService({
      hostId,
      instance,
      capacity,
      vmsDir,
      logLimitBytes: config.logLimitBytes,
      bootTimeoutMs: config.bootTimeoutMs,
      hypervisorTimeoutMs,
      dropPrivileges: isReal,
      abort: context.abort,
      metering: link,
      assets: new RpcAssets(assetClient, isReal ? bootAssets : noBootAssets),
      trust: new ProvenanceCheck({
        client: assetClient,
        keys: config.provenanceKeys,
        builderId: `spiffe://${identity.current.id.trustDomain}/builderd`,
      }),
      store,
      series,
      sampler,
      counters,
      networks,
      cgroups,
      disks,
      hypervisor,
      probe,
      clock,
      log,
    }),
  );
  await service.recover();
  const view = new HostView({
    service,
    hypervisor: hypervisor.name,
    capacity,
    probed: () => probed,
    networks,
    cgroups,
    dropPrivileges: isReal,
  });
  const trusted = config.provenanceKeys.map(({ id, algorithm }) => `${algorithm} ${id}`).join(", ");
  health.layer("provenance", { active: true, detail: `root filesystems signed by ${trusted}` });
  const showLayers = () => {
    for (const layer of view.layers()) health.layer(layer.name, layer);
  };
  showLayers();
  // Seconds of work that the first VM should not wait for.
  const readied = isReal ? [probe().then(showLayers), bootAssets()] : [probe()];
  for (const early of readied) {
    early.catch((error: unknown) => {
      if (!closing.signal.aborted) log.warn("not ready for VMs yet; tried again when one is created", { error });
    });
  }
  stack.defer(async () => {
    closing.abort(new ServiceError("SHUTTING_DOWN", "metald is stopping"));
    await Promise.allSettled(readied); // it uses the database and runs a trial guest
  });

  health.dependency("hypervisor", () => {
    if (probed === undefined) throw new Error("no trial boot has succeeded yet");
  });
  health.dependency(
    "quarantine",
    () => {
      if (quarantined.length > 0) throw new Error(quarantined.join("; "));
    },
    { required: false },
  );
  const [vmGauge, frameGauge] = [
    metrics.gauge("unkey_metald_sampled_vms", "VMs that are read every 100 ms."),
    metrics.gauge("unkey_metald_unconfirmed_frames", "Ticks that billaged has not confirmed."),
  ];
  stack.use(onWallClock(tickMs, () => sampler.tick(), { clock, log }));
  stack.use(
    everyMs(
      logPassMs,
      () => {
        vmGauge.set(sampler.size);
        frameGauge.set(link.status.unconfirmedFrames);
        return service.boundLogs();
      },
      { name: "logs", log },
    ),
  );
  stack.use(everyMs(leasePassMs, (signal) => service.renewLeases(signal), { name: "leases", log }));
  const server = stack.use(
    await listenRpc({
      routes: metalRoutes(service, view, context.stopping),
      identity,
      host: config.rpc.host,
      port: config.rpc.port,
      log,
      metrics,
      abort: context.abort,
      defaultTimeoutMs: verbTimeoutMs,
    }),
  );
  context.announce("rpc", server.host, server.port);
  return stack.move(); // everything is up: the caller owns it now
}

async function openGround(
  config: Config,
  deps: {
    readonly instanceId: string;
    readonly store: VmStore;
    readonly log: DaemonContext["log"];
    readonly stack: AsyncDisposableStack;
  },
): Promise<Ground> {
  if (config.hypervisor === "memory") {
    return {
      hypervisor: new MemoryHypervisor(),
      networks: new MemoryNetworks(),
      cgroups: new MemoryCgroups(),
      counters: new MemoryCounters(),
      disks: new VmDisks({ format: false }),
      subnet: config.subnet ?? parseSubnet("10.192.0.0/20", "subnet"),
      isReal: false,
    };
  }
  if (process.getuid?.() !== 0) {
    throw new ServiceError(
      "HOST_RESOURCE_FAILED",
      "metald needs root: it makes network namespaces, cgroups and users for VMs",
    );
  }
  const { instanceId, store, log, stack } = deps;
  const resolvers = config.resolvers ?? (await hostResolvers());
  const opened = stack.use(await openNetworks({ instanceId, configured: config.subnet, resolvers, store, log }));
  stack.use(everyMs(rulesPassMs, () => opened.refresh(), { name: "network rules", log }));
  const cgroups = stack.adopt(await LinuxCgroups.open(`unkey-${instanceId}`), (groups) => groups.close());
  return {
    hypervisor: new QemuHypervisor(),
    networks: opened.networks,
    cgroups,
    counters: new LinuxCounterSource(cgroups),
    disks: new VmDisks(),
    subnet: opened.subnet,
    isReal: true,
  };
}

/** Where no guest is run, any kernel will do: VMs name theirs. */
async function noBootAssets() {
  return { kernelAssetId: "", initrdAssetId: "" };
}

/** The result of `work`, done once; a failure is forgotten, so that the next caller tries again. */
function once<T>(work: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | undefined;
  return () => {
    result ??= work().catch((error: unknown) => {
      result = undefined;
      throw error;
    });
    return result;
  };
}

async function diskBytes(dir: string): Promise<number> {
  const { blocks, bsize } = await statfs(dir);
  return blocks * bsize;
}
