import { createHash } from "node:crypto";
import { mkdir, realpath } from "node:fs/promises";
import { join } from "node:path";
import type { ConnectRouter } from "@connectrpc/connect";
import { BuilderService } from "@unkey/api/builder";
import { systemClock } from "@unkey/base";
import { type DaemonContext, everyMs, type Layer, lockDataDir } from "@unkey/daemon";
import {
  formatPlatform,
  hostPlatform,
  type ImageSource,
  LayoutImage,
  parseImageReference,
  RegistryClient,
} from "@unkey/oci";
import { openSqlite } from "@unkey/sql";
import { migrations } from "./adapters/schema.ts";
import { SqlBuildStore } from "./adapters/sql-build-store.ts";
import { SqlQuotaStore } from "./adapters/sql-quota-store.ts";
import { SqlUploadStore } from "./adapters/sql-upload-store.ts";
import type { ProvenanceKeys } from "./attest/provenance-keys.ts";
import type { BuildVerifier } from "./attest/verify-build.ts";
import { BuildFeed } from "./build-feed.ts";
import { BuildQueue } from "./build-queue.ts";
import { BuildQuotas } from "./build-quotas.ts";
import { BuildRunner, type OpenImageOptions } from "./build-runner.ts";
import type { Config } from "./config.ts";
import type { BuildSource } from "./domain/build.ts";
import { builderHandlers } from "./handlers.ts";
import { LayerCache } from "./layer-cache/layer-cache.ts";
import type { AssetRegistry, Attester, BuildLimits, CredentialStore, RulesSource } from "./ports.ts";
import { Sandbox } from "./sandbox/sandbox.ts";
import { BuildService } from "./service.ts";
import { UploadService } from "./upload-service.ts";
import { type ImageWorkers, parallelLayers, SandboxedWorkers } from "./worker/image-workers.ts";
import { fillCompileCache, programFolders, workerProgram } from "./worker/program.ts";

const sweepIntervalMs = 60_000;
const settleIntervalMs = 30_000;
const pruneIntervalMs = 3_600_000;
/** Rises when unpacked layers look different: those of before are then unpacked again. */
const layerFormat = 2;
/** Rows that may wait: enough for a busy day's burst, few enough that the last one's turn comes. */
const defaultLimits: BuildLimits = { unfinished: 256, unfinishedPerTenant: 32 };

export interface BuilderParts {
  readonly assets: AssetRegistry;
  readonly attester: Attester;
  readonly verifier: BuildVerifier;
  readonly rules: RulesSource;
  readonly logins: CredentialStore;
  /** Replaced by tests that need them to fail or hang. */
  readonly workers?: ImageWorkers;
  readonly workerProgram?: readonly string[];
  readonly limits?: BuildLimits;
}

export interface Builder extends AsyncDisposable {
  /** What confines the processes that read images. */
  readonly layers: Readonly<Record<string, Layer>>;
  readonly routes: (router: ConnectRouter) => void;
}

/** Everything of builderd but its place on the network. Disposal waits for builds that run, until the abort signal. */
export async function openBuilder(
  config: Omit<Config, "rpc" | "assetManager" | "policyFile" | keyof ProvenanceKeys>,
  context: Pick<DaemonContext, "log" | "metrics" | "abort" | "stopping">,
  parts: BuilderParts,
): Promise<Builder> {
  const { log, metrics, abort, stopping } = context;
  const { dataDir, concurrency, buildTimeoutMs, plainHttpRegistries } = config;
  const clock = systemClock;
  const platform = hostPlatform();
  await using stack = new AsyncDisposableStack();
  stack.use(lockDataDir("builderd", dataDir));
  const registries = stack.use(new RegistryClient({ plainHttpRegistries, ...config.registries, clock }));
  const uploadDirectory = join(dataDir, "uploads");
  const scratchDirectory = join(dataDir, "scratch");
  await mkdir(uploadDirectory, { recursive: true, mode: 0o700 });
  const sql = stack.use(await openSqlite({ path: join(dataDir, "builderd.db"), migrations }));
  const store = new SqlBuildStore(sql);
  const compileCache = join(dataDir, "worker-cache");
  await mkdir(compileCache, { recursive: true, mode: 0o755 });
  const sandbox = stack.use(await openSandbox(config, compileCache));
  stack.use(fillCompileCache(compileCache, sandbox.uids));
  const layers = stack.use(
    await LayerCache.open({
      directory: join(dataDir, "layers"),
      maxBytes: config.layerCacheBytes,
      format: layerFormat,
      clock,
      log,
    }),
  );
  stack.use(everyMs(settleIntervalMs, (signal) => layers.settle(signal), { name: "layers", log }));
  const uploadStore = new SqlUploadStore(sql);
  const uploads = new UploadService({
    store: uploadStore,
    directory: uploadDirectory,
    maxBytes: config.uploadMaxBytes,
    lifetimeMs: config.uploadLifetimeMs,
    clock,
    log,
  });
  const openImage = (source: BuildSource, options: OpenImageOptions): ImageSource => {
    const { tenantId, credentials, plainHttp, onRetry } = options;
    switch (source.kind) {
      case "upload":
        return new LayoutImage(uploads.directoryOf(source.uploadId), `the image of ${source.uploadId}`);
      case "pushed":
        return parts.assets.pushedImage({ tenantId, repository: source.repository, digest: source.digest });
      case "reference":
        return registries.image(parseImageReference(source.reference), {
          plainHttp,
          onRetry,
          ...(credentials === undefined ? {} : { credentials }),
        });
    }
  };
  const feed = new BuildFeed();
  const { rules } = parts;
  const quotas = new BuildQuotas({ store: new SqlQuotaStore(sql), rules, clock });
  const runner = new BuildRunner({
    store,
    assets: parts.assets,
    attester: parts.attester,
    rules,
    fetchQuota: quotas,
    logins: parts.logins,
    feed,
    openImage,
    layers,
    workers:
      parts.workers ??
      new SandboxedWorkers({
        sandbox,
        program: parts.workerProgram ?? workerProgram,
        compileCache,
        memoryBytes: config.workerMemoryBytes,
        diskBytes: config.workerDiskBytes,
        log,
      }),
    platform,
    scratchDirectory,
    clock,
    metrics,
  });
  const queue = stack.use(
    new BuildQueue({
      store,
      runner,
      feed,
      uploads,
      quotas,
      rules,
      concurrency,
      buildTimeoutMs,
      scratchDirectory,
      clock,
      log,
      metrics,
      abort,
    }),
  );
  await queue.recover();
  stack.use(everyMs(sweepIntervalMs, () => uploads.sweep(), { name: "uploads", log, atStart: true }));
  const service = new BuildService({
    store,
    queue,
    quotas,
    rules,
    feed,
    platform: formatPlatform(platform),
    limits: parts.limits ?? defaultLimits,
    concurrency,
    retention: { keptMs: config.retentionMs, keptPerTenant: config.keptPerTenant },
    clock,
    log,
    stopping,
  });
  stack.use(everyMs(pruneIntervalMs, () => service.prune(), { name: "retention", log, atStart: true }));
  const owned = stack.move();
  return {
    layers: sandbox.layers,
    routes: (router) => void router.service(BuilderService, builderHandlers(service, uploads, parts.verifier)),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** What builderd's processes are called and who they are follows from its data directory: another builderd's on the host differ. */
async function openSandbox(
  { dataDir, concurrency, workerUidBase }: Pick<Config, "dataDir" | "concurrency" | "workerUidBase">,
  compileCache: string,
): Promise<Sandbox> {
  const digest = createHash("sha256")
    .update(await realpath(dataDir))
    .digest();
  return Sandbox.open({
    instanceId: digest.toString("hex", 0, 3),
    directory: join(dataDir, "sandbox"),
    programFolders: [...programFolders, compileCache],
    firstUid: workerUidBase + (digest.readUInt16BE(3) % 4096) * 256,
    maxRunning: concurrency * (parallelLayers + 1),
  });
}
