import type { ClickHouseValue } from "@unkey/clickhouse";
import { meters, type Quantities } from "../domain/meters.ts";
import type { PriceBook } from "../domain/price-book.ts";
import type { UsageUnit } from "../domain/usage-unit.ts";
import { canonicalCounters, quantitiesOf, versionOf } from "../domain/usage-window.ts";
import type { PricedWindow } from "../ports.ts";

// Between the rows of clickhouse-schema.ts and the domain.

export function windowRow({ window, batchId, book }: PricedWindow): Record<string, ClickHouseValue> {
  return {
    tenant_id: window.tenantId,
    app_id: window.appId,
    vm_id: window.vmId,
    incarnation: window.incarnation,
    host_id: window.hostId,
    start: window.startMs / 1000,
    price_book_id: book.id,
    price_book_hash: book.hash,
    covered_from_ms: window.coveredFromMs,
    covered_to_ms: window.coveredToMs,
    ...quantityColumns(quantitiesOf(window)),
    samples_expected: window.samplesExpected,
    samples_seen: window.samplesSeen,
    opening: canonicalCounters(window.opening),
    previous_hash: window.previousHash,
    closing: canonicalCounters(window.closing),
    hash: window.hash,
    revision: window.revision,
    final: window.final,
    version: versionOf(window),
    deployment_id: window.deploymentId,
    counter_fault: window.counterFault,
    gap_from_ms: window.gaps.map((gap) => gap.fromMs),
    gap_to_ms: window.gaps.map((gap) => gap.toMs),
    gap_cause: window.gaps.map((gap) => gap.cause),
    gap_bridged: window.gaps.map((gap) => gap.countersBridged),
    batch_id: batchId,
    record: Buffer.from(window.record).toString("base64"),
  };
}

function quantityColumns(quantities: Quantities): Record<string, bigint> {
  return {
    cpu_time_us: quantities.cpuTimeUs,
    memory_byte_ms: quantities.memoryByteMs,
    memory_resident_byte_ms: quantities.memoryResidentByteMs,
    disk_byte_ms: quantities.diskByteMs,
    disk_read_bytes: quantities.diskReadBytes,
    disk_write_bytes: quantities.diskWriteBytes,
    net_in_bytes: quantities.netInBytes,
    net_out_bytes: quantities.netOutBytes,
  };
}

/** Integers of 64 bits and more come as strings. */
export interface UnitRow {
  readonly app_id: string;
  readonly vm_id: string;
  readonly incarnation: number;
  readonly host_id: string;
  readonly price_book_id: string;
  readonly price_book_hash: string;
  readonly covered_from_ms: string;
  readonly covered_to_ms: string;
  readonly cpu_time_us: string;
  readonly memory_byte_ms: string;
  readonly memory_resident_byte_ms: string;
  readonly disk_byte_ms: string;
  readonly disk_read_bytes: string;
  readonly disk_write_bytes: string;
  readonly net_in_bytes: string;
  readonly net_out_bytes: string;
  readonly samples_expected: string;
  readonly samples_seen: string;
  readonly windows: string;
  readonly broken_links: string;
  readonly opening: string;
  readonly previous_hash: string;
  readonly closing: string;
  readonly hash: string;
  readonly revision: number;
  readonly final: boolean;
}

export interface GapRow {
  readonly vm_id: string;
  readonly incarnation: number;
  readonly host_id: string;
  readonly gap_from_ms: readonly string[];
  readonly gap_to_ms: readonly string[];
  readonly gap_cause: readonly number[];
  readonly gap_bridged: readonly boolean[];
}

export interface RecordRow {
  readonly start_ms: string;
  readonly incarnation: number;
  readonly host_id: string;
  readonly hash: string;
  readonly record: string;
}

export function toUnit(row: UnitRow): UsageUnit {
  return {
    appId: row.app_id,
    vmId: row.vm_id,
    incarnation: row.incarnation,
    hostId: row.host_id,
    priceBookId: row.price_book_id,
    priceBookHash: row.price_book_hash,
    coveredFromMs: Number(row.covered_from_ms),
    coveredToMs: Number(row.covered_to_ms),
    quantities: {
      cpuTimeUs: BigInt(row.cpu_time_us),
      memoryByteMs: BigInt(row.memory_byte_ms),
      memoryResidentByteMs: BigInt(row.memory_resident_byte_ms),
      diskByteMs: BigInt(row.disk_byte_ms),
      diskReadBytes: BigInt(row.disk_read_bytes),
      diskWriteBytes: BigInt(row.disk_write_bytes),
      netInBytes: BigInt(row.net_in_bytes),
      netOutBytes: BigInt(row.net_out_bytes),
    },
    samplesExpected: BigInt(row.samples_expected),
    samplesSeen: BigInt(row.samples_seen),
    windows: BigInt(row.windows),
    brokenLinks: BigInt(row.broken_links),
    opening: row.opening,
    previousHash: row.previous_hash,
    closing: row.closing,
    hash: row.hash,
    revision: row.revision,
    final: row.final,
  };
}

export function billingRows(
  row: UnitRow & { readonly tenant_id: string },
  dayMs: number,
  version: number,
  books: readonly PriceBook[],
): Record<string, ClickHouseValue>[] {
  const book = books.find(({ id }) => id === row.price_book_id);
  if (book === undefined) throw new Error(`usage is priced by ${row.price_book_id}, which is not known`);
  const { quantities } = toUnit(row);
  return meters.map(({ name, unit, quantity }) => {
    const price = book.prices.find(({ meter }) => meter === name);
    return {
      tenant_id: row.tenant_id,
      app_id: row.app_id,
      vm_id: row.vm_id,
      incarnation: row.incarnation,
      host_id: row.host_id,
      day: new Date(dayMs).toISOString().slice(0, 10),
      price_book_id: book.id,
      meter: name,
      price_book_hash: book.hash,
      unit,
      quantity: quantities[quantity],
      price_amount: price?.amount ?? "0",
      price_per: price?.perQuantity ?? "1",
      currency: book.currency,
      exponent: book.exponent,
      version,
    };
  });
}
