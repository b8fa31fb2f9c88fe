import type { TenantId, VmId } from "@unkey/base";
import type { Sql, SqlValue } from "@unkey/sql";
import type { Sample, Series, SeriesKey } from "../domain/sample.ts";
import type { SeriesStore } from "../ports.ts";

interface SeriesRow {
  tenant_id: string;
  vm_id: string;
  incarnation: number;
  app_id: string;
  deployment_id: string;
  baseline: string;
  final: string | null;
  start_confirmed: number;
}

export class SqlSeriesStore implements SeriesStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async begin(key: SeriesKey, baseline: Sample): Promise<Series> {
    await this.#sql.run(
      `INSERT OR IGNORE INTO series
       (tenant_id, vm_id, incarnation, app_id, deployment_id, baseline, final, start_confirmed)
       VALUES (?, ?, ?, ?, ?, ?, NULL, 0)`,
      [key.tenantId, key.vmId, key.incarnation, key.appId, key.deploymentId, toJson(baseline)],
    );
    const series = await this.get(key.vmId, key.incarnation);
    if (!series) throw new Error(`series ${key.vmId}/${key.incarnation} vanished`);
    return series;
  }

  async get(vmId: VmId, incarnation: number): Promise<Series | undefined> {
    const row = await this.#sql.one<SeriesRow>("SELECT * FROM series WHERE vm_id = ? AND incarnation = ?", [
      vmId,
      incarnation,
    ]);
    return row && toSeries(row);
  }

  async finish(vmId: VmId, incarnation: number, final: Sample): Promise<void> {
    await this.#sql.run("UPDATE series SET final = ? WHERE vm_id = ? AND incarnation = ? AND final IS NULL", [
      toJson(final),
      vmId,
      incarnation,
    ]);
  }

  async confirmStart(vmId: VmId, incarnation: number): Promise<void> {
    await this.#run("UPDATE series SET start_confirmed = 1 WHERE vm_id = ? AND incarnation = ?", [vmId, incarnation]);
  }

  async confirmStop(vmId: VmId, incarnation: number): Promise<void> {
    await this.#run("DELETE FROM series WHERE vm_id = ? AND incarnation = ? AND final IS NOT NULL", [
      vmId,
      incarnation,
    ]);
  }

  async unconfirmedStarts(): Promise<Series[]> {
    const rows = await this.#sql.query<SeriesRow>("SELECT * FROM series WHERE start_confirmed = 0 AND final IS NULL");
    return rows.map(toSeries);
  }

  async unconfirmedStops(): Promise<Series[]> {
    return (await this.#sql.query<SeriesRow>("SELECT * FROM series WHERE final IS NOT NULL")).map(toSeries);
  }

  async #run(text: string, params: readonly SqlValue[]): Promise<void> {
    await this.#sql.run(text, params);
  }
}

function toSeries(row: SeriesRow): Series {
  return {
    tenantId: row.tenant_id as TenantId,
    vmId: row.vm_id as VmId,
    incarnation: row.incarnation,
    appId: row.app_id,
    deploymentId: row.deployment_id,
    baseline: toSample(row.baseline),
    final: row.final === null ? undefined : toSample(row.final),
    startConfirmed: row.start_confirmed === 1,
  };
}

/** JSON writes NaN as null. */
function toJson(sample: Sample): string {
  return JSON.stringify(sample);
}

function toSample(text: string): Sample {
  return JSON.parse(text, (_key, value: unknown) => (value === null ? Number.NaN : value)) as Sample;
}
