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
  readonly tenantQuotaBytes: number;
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
    gcIntervalMs: settings.durationMs("GC_INTERVAL", { min: 1000, max: 7 * dayMs, default: 600_000 }),
    gcGraceMs: settings.durationMs("GC_GRACE", { min: 0, max: 3650 * dayMs, default: 7 * dayMs }),
  };
}
