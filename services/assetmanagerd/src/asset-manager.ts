import type { Clock } from "@unkey/base";
import type { Logger, Metrics } from "@unkey/daemon";
import { Assets } from "./assets.ts";
import { Collector } from "./collector.ts";
import { type Owner, platform, type Quota } from "./domain/asset.ts";
import type { BlobStore, Builds, Catalog, IncomingFiles, Stager } from "./ports.ts";
import { Removal } from "./removal.ts";
import { Scrubber } from "./scrubber.ts";
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
  readonly builds: Builds | undefined;
}

export interface AssetManagerLimits {
  readonly maxAssetBytes: number;
  readonly tenantQuotaBytes: number;
  readonly tenantQuotaAssets: number;
  readonly uploadLifetimeMs: number;
  readonly gcGraceMs: number;
  readonly scrubBytesPerSecond: number;
  readonly scrubRoundMs: number;
}

/** The verbs of assetmanagerd over whatever provides its parts. */
export interface AssetManager {
  readonly assets: Assets;
  readonly uploads: Uploads;
  readonly staging: Staging;
  readonly collector: Collector;
  readonly removal: Removal;
  readonly scrubber: Scrubber;
  /** Undefined without a builderd to start builds at. */
  readonly builds: Builds | undefined;
  /** Throws while stored bytes are known to be wrong. */
  mustBeWhole(): Promise<void>;
  /** Brings catalog and store together after a crash or a damaged disk; before anything else is asked. */
  recover(signal: AbortSignal): Promise<void>;
}

export function createAssetManager(parts: AssetManagerParts, limits: AssetManagerLimits): AssetManager {
  const { catalog, store, incoming, stager, clock, log, metrics } = parts;
  const tenantQuota: Quota = { bytes: limits.tenantQuotaBytes, assets: limits.tenantQuotaAssets };
  const quotaOf = (owner: Owner): Quota => (owner === platform ? { bytes: 0, assets: 0 } : tenantQuota);
  const common = { clock, log, metrics };
  const stored = new StoredBlobs({ catalog: catalog.blobs, store, ...common });
  const removal = new Removal({ catalog: catalog.removal, store, stored, ...common });
  const uploads = new Uploads({
    ...common,
    removal,
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
      store,
      stored,
      uploads,
      gcGraceMs: limits.gcGraceMs,
    }),
    removal,
    scrubber: new Scrubber({
      ...common,
      catalog: catalog.blobs,
      stored,
      bytesPerSecond: limits.scrubBytesPerSecond,
      roundMs: limits.scrubRoundMs,
    }),
    builds: parts.builds,
    mustBeWhole: async () => {
      const damaged = await catalog.blobs.damaged();
      if (damaged > 0) throw new Error(`the stored bytes of ${damaged} asset(s) are wrong`);
    },
    recover: async (signal) => {
      await uploads.recover();
      await stored.heal(signal);
    },
  };
}
