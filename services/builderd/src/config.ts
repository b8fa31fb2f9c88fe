import { gib, mib } from "@unkey/base";
import type { Address, Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";
import { type ProvenanceKeys, readProvenanceKeys } from "./attest/provenance-keys.ts";
import { type RegistrySettings, readRegistrySettings } from "./registry-settings.ts";

export interface Config extends ProvenanceKeys {
  readonly registries: RegistrySettings;
  readonly rpc: RpcSettings;
  /** Holds `builderd.db`, `uploads/`, `layers/` and `scratch/`. A build needs about three times its image there. */
  readonly dataDir: string;
  readonly assetManager: Address;
  /** Builds that run at once; one tenant leaves a place to others when there is more than one. */
  readonly concurrency: number;
  readonly buildTimeoutMs: number;
  readonly uploadMaxBytes: number;
  readonly uploadLifetimeMs: number;
  /** Unpacked layers that are kept, together. */
  readonly layerCacheBytes: number;
  /** What one of a build's processes may use. */
  readonly workerMemoryBytes: number;
  readonly workerDiskBytes: number;
  /** From here on lie the user ids of builds' processes, 2^20 of them. */
  readonly workerUidBase: number;
  /** The operator's build policy; the defaults hold without one. */
  readonly policyFile: string | undefined;
  /** Builds and their logs are removed so long after their end. */
  readonly retentionMs: number;
  /** Ended builds beyond so many newer ones of their tenant are removed sooner, but not on their day. */
  readonly keptPerTenant: number;
  /** `host[:port]` of registries, beside those on loopback, that may be spoken to without TLS. */
  readonly plainHttpRegistries: readonly string[];
}

export function readConfig(settings: Settings): Config {
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8082 }),
    dataDir: settings.path("DATA_DIR"),
    assetManager: settings.address("ASSETMANAGERD_ADDRESS"),
    ...readProvenanceKeys(settings),
    registries: readRegistrySettings(settings),
    concurrency: settings.int("CONCURRENCY", { min: 1, max: 64, default: 3 }),
    buildTimeoutMs: settings.durationMs("BUILD_TIMEOUT", { min: 1000, max: 86_400_000, default: 20 * 60_000 }),
    uploadMaxBytes: settings.bytes("UPLOAD_LIMIT", { min: mib, max: 1024 * gib, default: 8 * gib }),
    uploadLifetimeMs: settings.durationMs("UPLOAD_LIFETIME", { min: 60_000, max: 86_400_000, default: 3_600_000 }),
    layerCacheBytes: settings.bytes("LAYER_CACHE_LIMIT", { min: 0, max: 1024 * gib, default: 20 * gib }),
    workerMemoryBytes: settings.bytes("WORKER_MEMORY", { min: 256 * mib, max: 64 * gib, default: gib }),
    workerDiskBytes: settings.bytes("WORKER_DISK", { min: mib, max: 1024 * gib, default: 64 * gib }),
    workerUidBase: settings.int("WORKER_UID_BASE", { min: 1000, max: 0x7fff_ffff - 2 ** 20, default: 0x6800_0000 }),
    policyFile: settings.path("POLICY_FILE", { default: undefined }),
    retentionMs: settings.durationMs("RETENTION", {
      min: 86_400_000,
      max: 3650 * 86_400_000,
      default: 30 * 86_400_000,
    }),
    keptPerTenant: settings.int("KEEP_BUILDS", { min: 1, max: 1_000_000, default: 1000 }),
    plainHttpRegistries: settings.list("PLAIN_HTTP_REGISTRIES", { default: [] }),
  };
}
