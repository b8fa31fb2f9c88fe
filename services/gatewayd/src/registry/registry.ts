import type { Clock } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import type { RpcChannel } from "@unkey/rpc";
import type { Sql } from "@unkey/sql";
import type { Platform } from "../adapters/platform.ts";
import { AssetBytes } from "./asset-bytes.ts";
import { BlobStore } from "./blob-store.ts";
import { BlobService } from "./blobs.ts";
import { DiscoveryService } from "./discovery.ts";
import { ManifestStore } from "./manifest-store.ts";
import { ManifestService } from "./manifests.ts";
import { PushedImages } from "./pushed-images.ts";
import { ReferrerStore } from "./referrer-store.ts";
import type { RegistryGate } from "./registry-gate.ts";
import { RegistryHandler } from "./registry-handler.ts";
import { SweepStore } from "./sweep-store.ts";
import { Sweeper } from "./sweeper.ts";
import { UploadStore } from "./upload-store.ts";
import { UploadService } from "./uploads.ts";

export interface RegistryLimits {
  readonly maxBlobBytes: number;
  /** Of all images of a tenant. */
  readonly quotaBytes: number;
  /** What nothing refers to, and uploads that nobody continues, are kept for so long. */
  readonly graceMs: number;
  /** Manifests that nothing names are kept for so long. */
  readonly untaggedMs: number;
}

export interface RegistryDeps {
  readonly sql: Sql;
  readonly assets: RpcChannel;
  readonly platform: Pick<Platform, "call">;
  readonly gate: RegistryGate;
  readonly isOwnHost: (host: string) => boolean;
  readonly limits: RegistryLimits;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly abort: AbortSignal;
}

/** Builds the registry: what answers `/v2/`, what sweeps behind it, and what knows its images by name. */
export function assembleRegistry(deps: RegistryDeps): {
  readonly handler: RegistryHandler;
  readonly sweeper: Sweeper;
  readonly images: PushedImages;
} {
  const { sql, assets, platform, gate, isOwnHost, limits, clock, log, metrics, abort } = deps;
  const bytes = new AssetBytes({ channel: assets, call: (acting, more) => platform.call(acting, more) });
  const uploads = new UploadStore(sql);
  const manifestStore = new ManifestStore(sql);
  const sweeper = new Sweeper({ sweeps: new SweepStore(sql), uploads, bytes, clock, log, ...limits });
  const sweep = () => {
    sweeper.releaseDeleted(abort).catch((error: unknown) => log.warn("deleted blobs are released later", { error }));
  };
  const blobStore = new BlobStore(sql);
  const blobs = new BlobService({ blobs: blobStore, bytes, clock, released: sweep, ...limits });
  const uploadService = new UploadService({ blobs: blobStore, uploads, bytes, clock, sweep, ...limits });
  const manifests = new ManifestService({
    manifests: manifestStore,
    uploads: uploadService,
    bytes,
    clock,
    released: sweep,
  });
  const discovery = new DiscoveryService({ manifests: manifestStore, referrers: new ReferrerStore(sql) });
  return {
    handler: new RegistryHandler({ gate, blobs, uploads: uploadService, manifests, discovery, log, metrics, abort }),
    sweeper,
    images: new PushedImages({ manifests: manifestStore, isOwnHost }),
  };
}
