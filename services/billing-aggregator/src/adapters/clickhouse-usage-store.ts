import { randomUUID } from "node:crypto";
import { ServiceError } from "@unkey/base";
import { type ClickHouse, type ClickHouseParams, type ClickHouseValue, isClickHouseError } from "@unkey/clickhouse";
import { type Resolution, resolutionMs, type Segment } from "../domain/period.ts";
import type { PriceBook } from "../domain/price-book.ts";
import type { SeriesGap } from "../domain/usage-report.ts";
import type { UsageUnit } from "../domain/usage-unit.ts";
import type { PricedWindow, StoredRecord, UsageQuery, UsageStore } from "../ports.ts";
import { foldedColumns, foldSql } from "./clickhouse-fold.ts";
import { billingRows, type GapRow, type RecordRow, toUnit, type UnitRow, windowRow } from "./clickhouse-rows.ts";
import { recordTable, rollupTable, tables, windowTable } from "./clickhouse-schema.ts";

/** Rows of one insert: with all their gaps and proofs they stay below the client's limit of 32 MiB. */
const insertRows = 2_000;
/** Series of a tenant in one segment of a report. */
const maxUnits = 20_000;

/** Windows and everything derived from them in a ClickHouse. */
export class ClickHouseUsageStore implements UsageStore {
  readonly #clickHouse: ClickHouse;

  constructor(clickHouse: ClickHouse) {
    this.#clickHouse = clickHouse;
  }

  async prepare(): Promise<string> {
    for (const ddl of tables) await this.#exec(ddl);
    const find = () => this.#query<{ id: string }>("SELECT id FROM store_identity ORDER BY id LIMIT 1");
    const [known] = await find();
    if (known !== undefined) return known.id;
    const id = randomUUID();
    await this.#insert("store_identity", [{ id }], id);
    return (await find())[0]?.id ?? id;
  }

  async insertWindows(windows: readonly PricedWindow[], token: string): Promise<void> {
    for (let from = 0; from < windows.length; from += insertRows) {
      const rows = windows.slice(from, from + insertRows).map(windowRow);
      await this.#insert(windowTable, rows, `${token}:${from}`);
    }
  }

  async recordDay(hostId: string, dayMs: number, version: number, books: readonly PriceBook[]): Promise<void> {
    const period = { fromMs: dayMs, toMs: dayMs + resolutionMs["1d"] };
    const rows = await this.#query<UnitRow & { tenant_id: string }>(
      `SELECT * FROM ${rollupTable("1d")} AS w FINAL WHERE w.host_id = {host:String} AND ${within}
       SETTINGS ${finalByPartition}`,
      { host: hostId, ...bounds(period) },
    );
    const records = rows.flatMap((row) => billingRows(row, dayMs, version, books));
    for (let from = 0; from < records.length; from += insertRows) {
      await this.#insert(recordTable, records.slice(from, from + insertRows), `${version}:${dayMs}:${from}`);
    }
  }

  async rollUp(resolution: Resolution, hostId: string, fromMs: number, version: number): Promise<void> {
    const daily = resolution === "1d";
    const fold = foldSql({
      table: daily ? rollupTable("1h") : windowTable,
      where: `w.host_id = {host:String} AND ${within}`,
      bucket: `toStartOfInterval(w.start, INTERVAL ${resolutionMs[resolution] / 1000} SECOND, 'UTC')`,
    });
    const columns = foldedColumns.join(", ");
    await this.#exec(
      `INSERT INTO ${rollupTable(resolution)} (${columns}, version)
       SELECT ${columns}, {version:UInt64} FROM (${fold}) SETTINGS ${finalByPartition}`,
      { host: hostId, version, ...bounds({ fromMs, toMs: fromMs + resolutionMs[daily ? "1d" : "1h"] }) },
    );
  }

  async units(query: UsageQuery, segment: Segment): Promise<UsageUnit[]> {
    const table = segment.source === "window" ? windowTable : rollupTable(segment.source);
    const fold = foldSql({ table, where: `${whose(query)} AND ${within}` });
    const rows = await this.#query<UnitRow>(`${fold} LIMIT ${maxUnits + 1} SETTINGS ${finalByPartition}`, {
      ...whoseParams(query),
      ...bounds(segment),
    });
    if (rows.length > maxUnits) {
      throw new ServiceError("USAGE_TOO_LARGE", `the report would cover more than ${maxUnits} boots of VMs`);
    }
    return rows.map(toUnit);
  }

  async gaps(query: UsageQuery, period: Omit<Segment, "source">, limit: number): Promise<SeriesGap[]> {
    const rows = await this.#query<GapRow>(
      `SELECT vm_id, incarnation, host_id, gap_from_ms, gap_to_ms, gap_cause, gap_bridged FROM ${windowTable} AS w FINAL
       WHERE ${whose(query)} AND ${within} AND notEmpty(w.gap_from_ms)
       ORDER BY w.start LIMIT {limit:UInt32} SETTINGS ${finalByPartition}`,
      { ...whoseParams(query), ...bounds(period), limit },
    );
    return rows
      .flatMap((row) =>
        row.gap_from_ms.map((fromMs, index) => ({
          hostId: row.host_id,
          vmId: row.vm_id,
          incarnation: row.incarnation,
          fromMs: Number(fromMs),
          toMs: Number(row.gap_to_ms[index]),
          cause: row.gap_cause[index] ?? 0,
          countersBridged: row.gap_bridged[index] === true,
        })),
      )
      .slice(0, limit);
  }

  async records(
    query: UsageQuery,
    period: Omit<Segment, "source">,
    after: StoredRecord | undefined,
    limit: number,
  ): Promise<StoredRecord[]> {
    const beyond =
      after === undefined
        ? ""
        : `AND (w.start, w.incarnation, w.host_id) >
             (toDateTime({afterStart:UInt32}, 'UTC'), {afterIncarnation:UInt32}, {afterHost:String})`;
    const rows = await this.#query<RecordRow>(
      `SELECT ${startMs}, incarnation, host_id, hash, record FROM ${windowTable} AS w FINAL
       WHERE ${whose(query)} AND ${within} ${beyond}
       ORDER BY w.start, w.incarnation, w.host_id LIMIT {limit:UInt32} SETTINGS ${finalByPartition}`,
      {
        ...whoseParams(query),
        ...bounds(period),
        ...(after === undefined
          ? {}
          : { afterStart: after.startMs / 1000, afterIncarnation: after.incarnation, afterHost: after.hostId }),
        limit,
      },
    );
    return rows.map((row) => ({
      startMs: Number(row.start_ms),
      incarnation: row.incarnation,
      hostId: row.host_id,
      hash: row.hash,
      record: Buffer.from(row.record, "base64"),
    }));
  }

  ping(): Promise<void> {
    return named(() => this.#clickHouse.ping());
  }

  #query<R extends object>(sql: string, params: ClickHouseParams = {}): Promise<R[]> {
    return named(() => this.#clickHouse.query<R>(sql, params));
  }

  #exec(sql: string, params: ClickHouseParams = {}): Promise<void> {
    return named(() => this.#clickHouse.exec(sql, params));
  }

  #insert(table: string, rows: readonly Record<string, ClickHouseValue>[], dedupToken: string): Promise<void> {
    return named(() => this.#clickHouse.insert(table, rows, { dedupToken }));
  }
}

/** A partition is a function of the key, so no row's versions stand in two of them. */
const finalByPartition = "do_not_merge_across_partitions_select_final = 1";
const startMs = "toUnixTimestamp(w.start) * 1000 AS start_ms";
const within = "w.start >= toDateTime({from:UInt32}, 'UTC') AND w.start < toDateTime({to:UInt32}, 'UTC')";

function bounds({ fromMs, toMs }: Omit<Segment, "source">): ClickHouseParams {
  return { from: fromMs / 1000, to: toMs / 1000 };
}

/** The tenant comes first and always: nothing is ever read across tenants on behalf of one. */
function whose({ appId, vmId }: UsageQuery): string {
  const app = appId === "" ? "" : " AND w.app_id = {app:String}";
  const vm = vmId === "" ? "" : " AND w.vm_id = {vm:String}";
  return `w.tenant_id = {tenant:String}${app}${vm}`;
}

function whoseParams({ tenantId, appId, vmId }: UsageQuery): ClickHouseParams {
  return { tenant: tenantId, ...(appId === "" ? {} : { app: appId }), ...(vmId === "" ? {} : { vm: vmId }) };
}

async function named<T>(body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (cause) {
    if (!isClickHouseError(cause, "unavailable")) throw cause;
    throw new ServiceError("DEPENDENCY_UNAVAILABLE", "the usage store does not answer", { cause });
  }
}
