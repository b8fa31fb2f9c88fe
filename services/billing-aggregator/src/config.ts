import { gib, mib } from "@unkey/base";
import type { Secret, Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";
import { maxAgeDays } from "./domain/usage-window.ts";

const dayMs = 86_400_000;

export interface Config {
  readonly rpc: RpcSettings;
  readonly dataDir: string;
  /** How long batches are kept as they were received: as far back a lost usage store can be made again. */
  readonly inboxRetentionMs: number;
  /** Compressed bytes that the inbox may hold. */
  readonly inboxMaxBytes: number;
  /** A ClickHouse that somebody else runs; without it, the engine runs in a child process. */
  readonly clickHouse:
    | { readonly url: string; readonly username: string; readonly password: Secret; readonly database: string }
    | undefined;
}

/** Settings UNKEY_BILLING_AGGREGATOR_*. */
export function readConfig(settings: Settings): Config {
  const url = settings.string("CLICKHOUSE_URL", { default: undefined, pattern: /^https?:\/\/[^\s@]+$/ });
  const username = settings.string("CLICKHOUSE_USER", { default: "default" });
  const database = settings.string("CLICKHOUSE_DATABASE", { default: "default" });
  const password = settings.secretFile("CLICKHOUSE_PASSWORD", { default: undefined });
  if (url !== undefined && password === undefined) {
    settings.mistake("CLICKHOUSE_PASSWORD_FILE is required together with CLICKHOUSE_URL");
  }
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8084 }),
    dataDir: settings.path("DATA_DIR"),
    inboxRetentionMs: settings.durationMs("INBOX_RETENTION", {
      min: dayMs,
      max: maxAgeDays * dayMs,
      default: maxAgeDays * dayMs,
    }),
    inboxMaxBytes: settings.bytes("INBOX_LIMIT", { min: 16 * mib, max: 1024 * gib, default: 2 * gib }),
    clickHouse: url === undefined || password === undefined ? undefined : { url, username, password, database },
  };
}
