import { type Resolution, rollupRetentionDays } from "../domain/period.ts";
import { windowRetentionDays } from "../domain/usage-window.ts";

export const windowTable = "usage_window";
export const recordTable = "billing_record";

export function rollupTable(resolution: Resolution): string {
  return `usage_${resolution}`;
}

/** Batches whose repetition the engine refuses by token; older ones are dropped by key when parts merge. */
const dedupWindow = 10_000;

// Columns that a window shares with every rollup, so that one statement folds either (see clickhouse-fold.ts). A rollup's
// opening and previous_hash are its first window's; closing, hash, revision and final its last one's.
const unitColumns = `
  tenant_id LowCardinality(String),
  app_id LowCardinality(String),
  vm_id String CODEC(ZSTD(1)),
  incarnation UInt32,
  host_id LowCardinality(String),
  start DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
  price_book_id LowCardinality(String),
  price_book_hash LowCardinality(String),
  covered_from_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
  covered_to_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
  cpu_time_us UInt64 CODEC(ZSTD(1)),
  memory_byte_ms Int128 CODEC(ZSTD(1)),
  memory_resident_byte_ms Int128 CODEC(ZSTD(1)),
  disk_byte_ms Int128 CODEC(ZSTD(1)),
  disk_read_bytes UInt64 CODEC(ZSTD(1)),
  disk_write_bytes UInt64 CODEC(ZSTD(1)),
  net_in_bytes UInt64 CODEC(ZSTD(1)),
  net_out_bytes UInt64 CODEC(ZSTD(1)),
  samples_expected UInt64 CODEC(ZSTD(1)),
  samples_seen UInt64 CODEC(ZSTD(1)),
  windows UInt64 DEFAULT 1,
  broken_links UInt64 DEFAULT 0,
  opening String CODEC(ZSTD(1)),
  previous_hash String CODEC(ZSTD(1)),
  closing String CODEC(ZSTD(1)),
  hash String CODEC(ZSTD(1)),
  revision UInt32,
  final Bool`;

const usageWindow = `CREATE TABLE IF NOT EXISTS ${windowTable} (${unitColumns},
  version UInt128,
  deployment_id LowCardinality(String),
  counter_fault Bool,
  gap_from_ms Array(Int64),
  gap_to_ms Array(Int64),
  gap_cause Array(UInt8),
  gap_bridged Array(Bool),
  batch_id String CODEC(ZSTD(1)),
  record String COMMENT 'the window as it was received, serialized, base64' CODEC(ZSTD(1))
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(start)
ORDER BY (tenant_id, app_id, vm_id, incarnation, host_id, start)
TTL start + INTERVAL ${windowRetentionDays} DAY
SETTINGS non_replicated_deduplication_window = ${dedupWindow}, ttl_only_drop_parts = 1`;

/** Parts are dropped whole, so a partition spans little of what a table keeps. */
const partitions: Readonly<Record<Resolution, string>> = {
  "1m": "toYYYYMMDD(start)",
  "5m": "toYYYYMMDD(start)",
  "1h": "toYYYYMM(start)",
  "1d": "toYYYYMM(start)",
};

function usageRollup(resolution: Resolution): string {
  return `CREATE TABLE IF NOT EXISTS ${rollupTable(resolution)} (${unitColumns},
  version UInt64
) ENGINE = ReplacingMergeTree(version)
PARTITION BY ${partitions[resolution]}
ORDER BY (tenant_id, app_id, vm_id, incarnation, host_id, start, price_book_id)
TTL start + INTERVAL ${rollupRetentionDays[resolution]} DAY
SETTINGS ttl_only_drop_parts = 1`;
}

// What a series used of one meter in one day, and the price that it has: for ever. The amount is quantity × price_amount /
// price_per exactly; rounding belongs to the line that shows it.
const billingRecord = `CREATE TABLE IF NOT EXISTS ${recordTable} (
  tenant_id LowCardinality(String),
  app_id LowCardinality(String),
  vm_id String,
  incarnation UInt32,
  host_id LowCardinality(String),
  day Date,
  price_book_id LowCardinality(String),
  meter LowCardinality(String),
  price_book_hash LowCardinality(String),
  unit LowCardinality(String),
  quantity Int128 CODEC(ZSTD(1)),
  price_amount LowCardinality(String),
  price_per LowCardinality(String),
  currency LowCardinality(String),
  exponent UInt8,
  version UInt64
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(day)
ORDER BY (tenant_id, app_id, vm_id, incarnation, host_id, day, price_book_id, meter)`;

// One row, made with the store: it tells a store from one that was lost and made anew.
const storeIdentity = `CREATE TABLE IF NOT EXISTS store_identity (id String) ENGINE = MergeTree ORDER BY id`;

export const tables: readonly string[] = [
  usageWindow,
  ...(["1m", "5m", "1h", "1d"] as const).map(usageRollup),
  billingRecord,
  storeIdentity,
];
