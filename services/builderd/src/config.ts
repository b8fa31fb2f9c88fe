import { gib, mib } from "@unkey/base";
import type { Address, Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";

export interface Config {
  readonly rpc: RpcSettings;
  /** Holds `builderd.db`, `uploads/` and `scratch/`. A build needs about three times its image there. */
  readonly dataDir: string;
  readonly assetManager: Address;
  /** Builds that run at once. */
  readonly concurrency: number;
  readonly buildTimeoutMs: number;
  readonly uploadMaxBytes: number;
  readonly uploadLifetimeMs: number;
  /** `host[:port]` of registries, beside those on loopback, that may be spoken to without TLS. */
  readonly plainHttpRegistries: readonly string[];
}

export function readConfig(settings: Settings): Config {
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8082 }),
    dataDir: settings.path("DATA_DIR"),
    assetManager: settings.address("ASSETMANAGERD_ADDRESS"),
    concurrency: settings.int("CONCURRENCY", { min: 1, max: 64, default: 2 }),
    buildTimeoutMs: settings.durationMs("BUILD_TIMEOUT", { min: 1000, max: 86_400_000, default: 20 * 60_000 }),
    uploadMaxBytes: settings.bytes("UPLOAD_MAX", { min: mib, max: 1024 * gib, default: 8 * gib }),
    uploadLifetimeMs: settings.durationMs("UPLOAD_LIFETIME", { min: 60_000, max: 86_400_000, default: 3_600_000 }),
    plainHttpRegistries: settings.list("PLAIN_HTTP_REGISTRIES", { default: [] }),
  };
}
