import type { Clock } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { Assets } from "./assets.ts";
import { Collector } from "./collector.ts";
import { type Owner, platform, type Quota } from "./domain/asset.ts";
import type { BlobStore, Catalog, IncomingFiles, Stager } from "./ports.ts";
import { Staging } from "./staging.ts";
import { StoredBlobs } from "./stored-blobs.ts";
import { Uploads } from "./uploads.ts";

export interface AssetManagerParts {
  readonly catalog: Catalog;
  readonly store: BlobStore;
  readonly incoming: IncomingFiles;
  readonly stager: Stager;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
}

export interface AssetManagerLimits {
  readonly maxAssetBytes: number;
  readonly tenantQuotaBytes: number;
  readonly tenantQuotaAssets: number;
  readonly uploadLifetimeMs: number;
  readonly gcGraceMs: number;
}

/** The verbs of assetmanagerd over whatever provides its parts. */
export interface AssetManager {
  readonly assets: Assets;
  readonly uploads: Uploads;
  readonly staging: Staging;
  readonly collector: Collector;
  /** Brings catalog and store together after a crash or a damaged disk; before anything else is asked. */
  recover(signal: AbortSignal): Promise<void>;
}

export function createAssetManager(parts: AssetManagerParts, limits: AssetManagerLimits): AssetManager {
  const { catalog, store, incoming, stager, clock, log, metrics } = parts;
  const tenantQuota: Quota = { bytes: limits.tenantQuotaBytes, assets: limits.tenantQuotaAssets };
  const quotaOf = (owner: Owner): Quota => (owner === platform ? { bytes: 0, assets: 0 } : tenantQuota);
  const common = { clock, log, metrics };
  const stored = new StoredBlobs({ catalog: catalog.blobs, store, ...common });
  const uploads = new Uploads({
    ...common,
    assets: catalog.assets,
    uploads: catalog.uploads,
    incoming,
    stored,
    quotaOf,
    maxAssetBytes: limits.maxAssetBytes,
    uploadLifetimeMs: limits.uploadLifetimeMs,
  });
  return {
    assets: new Assets({ assets: catalog.assets, stored, clock, quotaOf }),
    uploads,
    staging: new Staging({ leases: catalog.leases, stored, stager, ...common }),
    collector: new Collector({
      ...common,
      collection: catalog.collection,
      blobs: catalog.blobs,
      store,
      stored,
      uploads,
      gcGraceMs: limits.gcGraceMs,
    }),
    recover: async (signal) => {
      await uploads.recover();
      await stored.heal(signal);
    },
  };
}
