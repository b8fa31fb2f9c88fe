import { gib, mib } from "@unkey/base";
import type { Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";

const dayMs = 86_400_000;

export interface Config {
  readonly rpc: RpcSettings;
  /** Holds `assets.db` and `blobs/`. */
  readonly dataDir: string;
  /** Directories below which assets may be staged; none forbids staging. */
  readonly stagingRoots: readonly string[];
  readonly maxAssetBytes: number;
  /** Per tenant; 0 for no limit. The platform has none. */
  readonly tenantQuotaBytes: number;
  readonly tenantQuotaAssets: number;
  /** An upload that nobody adds to for so long is given up. */
  readonly uploadLifetimeMs: number;
  readonly gcIntervalMs: number;
  readonly gcGraceMs: number;
}

export function readConfig(settings: Settings): Config {
  const tebibyte = 1024 * gib;
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8083 }),
    dataDir: settings.path("DATA_DIR"),
    stagingRoots: settings.list("STAGING_ROOTS", { default: [], pattern: /^\// }),
    maxAssetBytes: settings.bytes("MAX_ASSET", { min: mib, max: tebibyte, default: 16 * gib }),
    tenantQuotaBytes: settings.bytes("TENANT_QUOTA", { min: 0, max: 1024 * tebibyte, default: 0 }),
    tenantQuotaAssets: settings.int("TENANT_QUOTA_ASSETS", { min: 0, max: 100_000_000, default: 0 }),
    uploadLifetimeMs: settings.durationMs("UPLOAD_LIFETIME", { min: 60_000, max: 30 * dayMs, default: dayMs }),
    gcIntervalMs: settings.durationMs("GC_INTERVAL", { min: 1000, max: 7 * dayMs, default: 600_000 }),
    gcGraceMs: settings.durationMs("GC_GRACE", { min: 0, max: 3650 * dayMs, default: 7 * dayMs }),
  };
}
