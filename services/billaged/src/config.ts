import { gib, mib } from "@unkey/base";
import type { Address, Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";

export interface Config {
  readonly rpc: RpcSettings;
  /** Holds `wal/` and `billaged.db`. */
  readonly dataDir: string;
  /** Log and outbox together may grow to this: days of an unreachable aggregator. */
  readonly limitBytes: number;
  readonly segmentBytes: number;
  readonly aggregator: Address;
}

export function readConfig(settings: Settings): Config {
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8081 }),
    dataDir: settings.path("DATA_DIR"),
    limitBytes: settings.bytes("LOG_LIMIT", { min: mib, max: 1024 * gib, default: 4 * gib }),
    segmentBytes: settings.bytes("SEGMENT_SIZE", { min: 64 * 1024, max: 256 * mib, default: 16 * mib }),
    aggregator: settings.address("AGGREGATOR_ADDRESS"),
  };
}
