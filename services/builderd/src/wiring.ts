import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { BuilderService } from "@unkey/api/builder";
import { systemClock } from "@unkey/base";
import { type DaemonContext, everyMs } from "@unkey/daemon";
import {
  formatPlatform,
  hostPlatform,
  type ImageSource,
  LayoutImage,
  parseImageReference,
  RegistryClient,
  writeRootfs,
} from "@unkey/oci";
import { listenRpc, openIdentity, openRpcChannel } from "@unkey/rpc";
import { openSqlite } from "@unkey/sql";
import { RpcAssetRegistry } from "./adapters/rpc-asset-registry.ts";
import { migrations } from "./adapters/schema.ts";
import { SqlBuildStore } from "./adapters/sql-build-store.ts";
import { SqlUploadStore } from "./adapters/sql-upload-store.ts";
import { BuildFeed } from "./build-feed.ts";
import { BuildQueue } from "./build-queue.ts";
import { BuildRunner, type OpenImageOptions } from "./build-runner.ts";
import type { Config } from "./config.ts";
import type { BuildSource } from "./domain/build.ts";
import { builderHandlers } from "./handlers.ts";
import { BuildService } from "./service.ts";
import { UploadService } from "./upload-service.ts";

const sweepIntervalMs = 60_000;
/** Rows that may wait: enough for a busy day's burst, few enough that the last one's turn comes. */
const limits = { unfinished: 256, unfinishedPerTenant: 32 };

export async function startBuilderd(config: Config, context: DaemonContext): Promise<AsyncDisposable> {
  const { log, metrics, health } = context;
  const clock = systemClock;
  const platform = hostPlatform();
  await using stack = new AsyncDisposableStack(); // closes in reverse order, also when a later line throws
  const identity = stack.adopt(openIdentity(config.rpc, context), (source) => source[Symbol.dispose]());
  const channel = stack.use(openRpcChannel({ peer: "assetmanagerd", address: config.assetManager, identity, metrics }));
  const registries = stack.use(new RegistryClient({ plainHttpRegistries: config.plainHttpRegistries, clock }));
  const uploadDirectory = join(config.dataDir, "uploads");
  const scratchDirectory = join(config.dataDir, "scratch");
  await mkdir(uploadDirectory, { recursive: true, mode: 0o700 });
  const sql = stack.use(await openSqlite({ path: join(config.dataDir, "builderd.db"), migrations }));
  const store = new SqlBuildStore(sql);
  const uploadStore = new SqlUploadStore(sql);
  const assets = new RpcAssetRegistry(channel, clock);
  health.dependency("assetmanagerd", () => assets.check());
  const asRoot = process.getuid?.() === 0;
  health.layer("rootfs-writer", {
    active: asRoot,
    detail: asRoot ? "mkfs.erofs over a private directory" : "needs root to set owners and make devices",
  });

  const uploads = new UploadService({
    store: uploadStore,
    directory: uploadDirectory,
    maxBytes: config.uploadMaxBytes,
    lifetimeMs: config.uploadLifetimeMs,
    clock,
    log,
  });
  const openImage = (source: BuildSource, options: OpenImageOptions): ImageSource =>
    source.kind === "upload"
      ? new LayoutImage(uploads.directoryOf(source.uploadId), `the image of ${source.uploadId}`)
      : registries.image(parseImageReference(source.reference), {
          plainHttp: options.plainHttp,
          ...(options.credentials === undefined ? {} : { credentials: options.credentials }),
        });
  const feed = new BuildFeed();
  const runner = new BuildRunner({
    store,
    assets,
    feed,
    openImage,
    writeRootfs,
    platform,
    scratchDirectory,
    clock,
    metrics,
  });
  const { concurrency, buildTimeoutMs } = config;
  const { abort, stopping } = context;
  const queue = stack.use(
    new BuildQueue({ store, runner, feed, concurrency, buildTimeoutMs, scratchDirectory, clock, log, metrics, abort }),
  );
  await queue.recover();
  stack.use(everyMs(sweepIntervalMs, () => uploads.sweep(), { name: "uploads", log, atStart: true }));
  const service = new BuildService({
    store,
    uploads: uploadStore,
    queue,
    feed,
    platform: formatPlatform(platform),
    limits,
    clock,
    stopping,
  });
  const server = stack.use(
    await listenRpc({
      routes: (router) => router.service(BuilderService, builderHandlers(service, uploads)),
      identity,
      host: config.rpc.host,
      port: config.rpc.port,
      log,
      metrics,
      abort,
    }),
  );
  context.announce("rpc", server.host, server.port);
  return stack.move(); // everything is up: the caller owns it now
}
