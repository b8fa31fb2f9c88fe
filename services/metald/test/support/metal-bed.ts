import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { AssetService } from "@unkey/api/asset";
import { ProcessConfigSchema, ResourcesSchema } from "@unkey/api/common";
import { MetalService as MetalContract, type Vm, VmSpecSchema, VmState } from "@unkey/api/metal";
import { MeteringService } from "@unkey/api/metering";
import type { VerificationKey } from "@unkey/attest";
import { gib, type HostId, mib, newId, systemClock, type TenantId } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { inMemoryClient } from "@unkey/rpc";
import { openSqlite, type Sql } from "@unkey/sql";
import { MemoryHypervisor, type MemoryHypervisorOptions } from "@unkey/vmm";
import { MemoryCgroups, MemoryCounters, MemoryNetworks } from "../../src/adapters/memory-host.ts";
import { ProvenanceCheck } from "../../src/adapters/provenance-check.ts";
import { RpcAssets } from "../../src/adapters/rpc-assets.ts";
import { migrations } from "../../src/adapters/schema.ts";
import { SqlSeriesStore } from "../../src/adapters/sql-series-store.ts";
import { SqlVmStore } from "../../src/adapters/sql-vm-store.ts";
import { VmDisks } from "../../src/adapters/vm-disks.ts";
import type { Capacity } from "../../src/domain/capacity.ts";
import { parseSubnet } from "../../src/domain/subnet.ts";
import { metalRoutes } from "../../src/handlers.ts";
import { HostView } from "../../src/host-view.ts";
import { MeteringLink } from "../../src/metering/metering-link.ts";
import { Sampler } from "../../src/metering/sampler.ts";
import { reconcileHost } from "../../src/reconcile.ts";
import { MetalService } from "../../src/service.ts";
import { vmPaths } from "../../src/vm-paths.ts";
import { FakeAssets, FakeBillaged } from "./fake-peers.ts";

export interface BedOptions extends MemoryHypervisorOptions {
  readonly capacity?: Partial<Capacity>;
  readonly bootTimeoutMs?: number;
  readonly hypervisorTimeoutMs?: number;
  readonly logLimitBytes?: number;
  readonly subnet?: string;
}

/** One run of metald: everything of it that a kill takes with it. */
class Run {
  readonly service: MetalService;
  readonly sampler: Sampler;
  readonly link: MeteringLink;
  readonly sql: Sql;
  readonly #abort: AbortController;

  constructor(parts: {
    service: MetalService;
    sampler: Sampler;
    link: MeteringLink;
    sql: Sql;
    abort: AbortController;
  }) {
    this.service = parts.service;
    this.sampler = parts.sampler;
    this.link = parts.link;
    this.sql = parts.sql;
    this.#abort = parts.abort;
  }

  /** As SIGKILL: nothing of it acts any more, and it is not asked to finish anything. */
  async kill(): Promise<void> {
    this.#abort.abort(new Error("killed"));
    this.sampler.close();
    await this.link[Symbol.asyncDispose]();
    await this.sql[Symbol.asyncDispose]();
  }

  async stop(): Promise<void> {
    await this.service[Symbol.asyncDispose]();
    await this.kill();
  }
}

/**
 * A host without guests that a metald can be started on, killed on and started on again: hypervisor, network, cgroups and
 * peers live on, as they do on a real host.
 */
export class MetalBed {
  readonly assets = new FakeAssets();
  readonly billaged = new FakeBillaged();
  readonly networks = new MemoryNetworks();
  readonly cgroups = new MemoryCgroups();
  readonly counters = new MemoryCounters();
  readonly hypervisor: MemoryHypervisor;
  readonly dir: string;
  readonly tenantId: TenantId = newId("tenant");
  readonly #options: BedOptions;
  /** What the next start believes. */
  trustedKeys: readonly VerificationKey[] = [this.assets.signer.verificationKey];
  #run: Run | undefined;
  /** Points of verbs, in order; see VmDriverDeps.trace. */
  points: string[] = [];
  #dead = Promise.withResolvers<void>();
  #killAt: { readonly count: number; readonly reached: PromiseWithResolvers<void> } | undefined;

  private constructor(dir: string, options: BedOptions) {
    this.dir = dir;
    this.#options = options;
    this.hypervisor = new MemoryHypervisor(options);
    this.#dead.promise.catch(() => undefined);
  }

  /** For tests that need many: `await using`. */
  static async openDisposable(options: BedOptions = {}): Promise<MetalBed & AsyncDisposable> {
    const bed = new MetalBed(await mkdtemp(join(tmpdir(), "metald-")), options);
    await bed.start();
    return Object.assign(bed, { [Symbol.asyncDispose]: () => bed.#close() });
  }

  static async open(t: { after(fn: () => Promise<void>): void }, options: BedOptions = {}): Promise<MetalBed> {
    const bed = new MetalBed(await mkdtemp(join(tmpdir(), "metald-")), options);
    t.after(() => bed.#close());
    await bed.start();
    return bed;
  }

  async #close(): Promise<void> {
    await this.#run?.stop();
    await rm(this.dir, { recursive: true, force: true });
  }

  get run(): Run {
    if (!this.#run) throw new Error("metald does not run");
    return this.#run;
  }

  async start(): Promise<void> {
    const { hypervisor, networks, cgroups, counters, dir } = this;
    const clock = systemClock;
    const log = createLogger({ write: (line) => void this.logLines.push(line), level: "debug" });
    const abort = new AbortController();
    const sql = await openSqlite({ path: join(dir, "metald.db"), migrations });
    const store = new SqlVmStore(sql);
    const series = new SqlSeriesStore(sql);
    const hostId: HostId = await store.hostId();
    const caller = { service: "metald" };
    const assetClient = inMemoryClient(AssetService, { routes: this.assets.routes, caller });
    const client = inMemoryClient(MeteringService, { routes: this.billaged.routes, caller });
    const link = new MeteringLink({ client, series, hostId, epoch: await store.nextEpoch(), clock, log });
    const sampler = new Sampler({ clock, onTick: (tick) => link.push(tick) });
    const instance = {
      id: "0123ab",
      subnet: parseSubnet(this.#options.subnet ?? "10.192.0.0/24", "subnet"),
      uidBase: 100_000,
    };
    const disks = new VmDisks({ format: false });
    const capacity = {
      vcpuCount: 16,
      maxVcpusPerVm: 4,
      memoryBytes: 8 * gib,
      diskBytes: 100 * gib,
      ...this.#options.capacity,
    };
    const vmsDir = join(dir, "vms");
    await disks.ensureDir(vmsDir, 0o711);
    await reconcileHost({ store, networks, cgroups, disks, hypervisor, instance, vmsDir, log });
    const service = new MetalService({
      hostId,
      instance,
      capacity,
      vmsDir,
      logLimitBytes: this.#options.logLimitBytes ?? mib,
      bootTimeoutMs: this.#options.bootTimeoutMs ?? 5_000,
      hypervisorTimeoutMs: this.#options.hypervisorTimeoutMs ?? 2_000,
      dropPrivileges: false,
      abort: abort.signal,
      metering: link,
      assets: new RpcAssets(assetClient, async () => ({
        kernelAssetId: newId("asset"),
        initrdAssetId: newId("asset"),
      })),
      trust: new ProvenanceCheck({
        client: assetClient,
        keys: this.trustedKeys,
        builderId: "spiffe://unkey.test/builderd",
      }),
      probe: async () => ({ accelerator: "memory", hypervisorVersion: "1" }),
      trace: (point) => this.#trace(point),
      store,
      series,
      sampler,
      counters,
      networks,
      cgroups,
      disks,
      hypervisor,
      clock,
      log,
    });
    await service.recover();
    this.#view = new HostView({
      service,
      hypervisor: hypervisor.name,
      capacity,
      probed: () => ({ accelerator: "memory", hypervisorVersion: "1" }),
      networks,
      cgroups,
      dropPrivileges: false,
    });
    this.#run = new Run({ service, sampler, link, sql, abort });
  }

  readonly logLines: string[] = [];
  #view: HostView | undefined;

  /** Kills metald when it reaches its `count`-th point from now; resolves when it is dead. */
  killAtPoint(count: number): Promise<void> {
    this.points = [];
    this.#killAt = { count, reached: Promise.withResolvers() };
    return this.#killAt.reached.promise.then(() => this.kill());
  }

  async kill(): Promise<void> {
    await this.#run?.kill();
    this.#run = undefined;
    this.#dead.reject(new Error("killed")); // nothing can be written any more; lets its callers go
  }

  get isDead(): boolean {
    return this.#run === undefined;
  }

  async stop(): Promise<void> {
    await this.#run?.stop();
    this.#run = undefined;
  }

  /** Starts metald again and waits until it has taken up what there was. */
  async restart(): Promise<void> {
    this.#killAt = undefined;
    this.#dead = Promise.withResolvers();
    this.#dead.promise.catch(() => undefined);
    if (this.#run) await this.stop();
    await this.start();
    await this.run.service.idle();
  }

  /** Calls metald as gatewayd does, for a tenant; or as the operator. */
  client(tenantId: TenantId | "operator" = this.tenantId): Client<typeof MetalContract> {
    const { service } = this.run;
    if (!this.#view) throw new Error("metald does not run");
    const principal =
      tenantId === "operator" ? undefined : { tenantId, subject: "key", roles: [], requestId: newId("req") };
    return inMemoryClient(MetalContract, {
      routes: metalRoutes(service, this.#view, new AbortController().signal),
      caller: principal ? { service: "gatewayd", principal } : { service: "operator" },
    });
  }

  wish(vmId: string = newId("vm"), spec: MessageInitShape<typeof VmSpecSchema> = {}) {
    return {
      tenantId: this.tenantId,
      vmId,
      appId: "app_0",
      deploymentId: "dep_0",
      spec: create(VmSpecSchema, {
        resources: create(ResourcesSchema, {
          vcpuCount: 1,
          memoryBytes: BigInt(256 * mib),
          diskBytes: BigInt(64 * mib),
        }),
        rootfsAssetId: rootfs,
        process: create(ProcessConfigSchema, { argv: ["/bin/app"], env: [{ name: "TOKEN", value: "s3cret" }] }),
        stopGraceMs: 200,
        ...spec,
      }),
    };
  }

  async createAndBoot(vmId: string = newId("vm")): Promise<Vm> {
    await this.client().createVm(this.wish(vmId));
    return this.client().bootVm({ tenantId: this.tenantId, vmId });
  }

  machine(vmId: string) {
    return this.hypervisor.machine(vmPaths(join(this.dir, "vms"), vmId).runDir);
  }

  paths(vmId: string) {
    return vmPaths(join(this.dir, "vms"), vmId);
  }

  /** Everything on this host that exists for VMs. */
  async leftovers(): Promise<Record<string, unknown>> {
    return {
      folders: await readdir(join(this.dir, "vms")),
      networks: await this.networks.present(),
      cgroups: await this.cgroups.present(),
      leases: [...this.assets.leases.keys()],
    };
  }

  #trace(point: string): Promise<void> | undefined {
    this.points.push(point);
    if (this.#killAt && this.points.length >= this.#killAt.count) {
      this.#killAt.reached.resolve();
      return this.#dead.promise; // a killed process does not go on from where it was
    }
    return undefined;
  }
}

export const nothing = { folders: [], networks: [], cgroups: [], leases: [] };
const rootfs = newId("asset");

/** Waits for something that others bring about; fails after some seconds. */
export async function eventually<T>(look: () => Promise<T | undefined> | T | undefined, what: string): Promise<T> {
  for (let waitedMs = 0; waitedMs < 20_000; waitedMs += 10) {
    const found = await look();
    if (found !== undefined) return found;
    await systemClock.sleep(10);
  }
  throw new Error(`never happened: ${what}`);
}

export function stateName(vm: Vm): string {
  return Object.entries(VmState).find(([, value]) => value === vm.state)?.[0] ?? String(vm.state);
}
