import { access, constants } from "node:fs/promises";
import { join } from "node:path";
import { AssetService as AssetServiceDesc } from "@unkey/api/asset";
import { formatBytes, systemClock } from "@unkey/base";
import { type DaemonContext, everyMs, lockDataDir } from "@unkey/daemon";
import { listenRpc, openIdentity, openRpcChannel } from "@unkey/rpc";
import { DirectoryStager } from "./adapters/directory-stager.ts";
import { DiskIncomingFiles } from "./adapters/incoming-files.ts";
import { openBlobStore } from "./adapters/open-blob-store.ts";
import { RpcBuilds } from "./adapters/rpc-builds.ts";
import { openSqlCatalog } from "./adapters/sql-catalog.ts";
import { createAssetManager } from "./asset-manager.ts";
import type { Config } from "./config.ts";
import { assetHandlers } from "./handlers.ts";
import type { Builds } from "./ports.ts";

const healthTimeoutMs = 5_000;
/** How often it is looked whether bytes may be given back. */
const removalCheckMs = 2_000;
/** How often the scrubber looks whether its next round is due. */
const scrubCheckMs = 60_000;

export async function startAssetManager(config: Config, context: DaemonContext): Promise<AsyncDisposable> {
  const { log, metrics, health } = context;
  await using stack = new AsyncDisposableStack(); // closes in reverse order, also when a later line throws
  const identity = stack.use(openIdentity(config.rpc, context));
  stack.use(lockDataDir("assetmanagerd", config.dataDir));
  const blobsDir = join(config.dataDir, "blobs");
  const catalog = stack.use(await openSqlCatalog(join(config.dataDir, "assets.db")));
  const blobStore = stack.use(
    await openBlobStore({
      directory: blobsDir,
      remote: config.remote,
      keys: catalog.keys,
      maxBlobBytes: config.maxAssetBytes,
      clock: systemClock,
      signal: context.stopping,
    }),
  );
  const incoming = await DiskIncomingFiles.open(blobsDir, config.intakeRoots);
  const stager = new DirectoryStager(config.stagingRoots);
  let builds: Builds | undefined;
  if (config.builder !== undefined) {
    const channel = openRpcChannel({ peer: "builderd", address: config.builder, identity, metrics });
    builds = new RpcBuilds(stack.use(channel), systemClock);
  }
  const manager = createAssetManager(
    { catalog, store: blobStore.store, incoming, stager, builds, clock: systemClock, log, metrics },
    config,
  );
  await manager.recover(context.stopping);
  health.dependency("catalog", async () => void (await catalog.assets.usage("")));
  health.dependency("blob store", async () => {
    await access(blobsDir, constants.R_OK | constants.W_OK);
    await blobStore.check(AbortSignal.any([context.stopping, AbortSignal.timeout(healthTimeoutMs)]));
  });
  stack.use(
    everyMs(config.gcIntervalMs, async (signal) => void (await manager.collector.collect(signal)), {
      name: "collect",
      log,
    }),
  );
  const remove = (signal: AbortSignal) => manager.removal.pass(signal);
  stack.use(everyMs(removalCheckMs, remove, { name: "remove", log }));
  health.dependency("stored bytes", () => manager.mustBeWhole(), { required: false });
  if (config.scrubBytesPerSecond > 0) {
    const scrub = (signal: AbortSignal) => manager.scrubber.pass(signal);
    stack.use(everyMs(scrubCheckMs, scrub, { name: "scrub", log, atStart: true }));
  }
  health.layer("scrubber", {
    active: config.scrubBytesPerSecond > 0,
    detail: config.scrubBytesPerSecond > 0 ? `${formatBytes(config.scrubBytesPerSecond)}/s` : "SCRUB_RATE is 0",
  });
  const server = stack.use(
    await listenRpc({
      routes: (router) => router.service(AssetServiceDesc, assetHandlers(manager)),
      identity,
      host: config.rpc.host,
      port: config.rpc.port,
      log,
      metrics,
      abort: context.abort,
    }),
  );
  context.announce("rpc", server.host, server.port);
  return stack.move(); // everything is up: the caller owns it now
}
