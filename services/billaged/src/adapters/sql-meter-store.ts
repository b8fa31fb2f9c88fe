import { join } from "node:path";
import { type Migration, openSqlite, type Sql } from "@unkey/sql";
import type { MeterSnapshot } from "../domain/meter.ts";
import type { Checkpoint, MeterStore, PendingBatch } from "../ports.ts";

const migrations: readonly Migration[] = [
  {
    id: 1,
    sql: `
      CREATE TABLE log_epoch (id INTEGER PRIMARY KEY CHECK (id = 1), epoch BIGINT NOT NULL);
      CREATE TABLE checkpoint (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        segment BIGINT NOT NULL,
        position BIGINT NOT NULL,
        snapshot TEXT NOT NULL
      );
      CREATE TABLE outbox (
        seq BIGINT PRIMARY KEY,
        batch_id TEXT NOT NULL UNIQUE,
        zstd BLOB NOT NULL,
        bytes BIGINT NOT NULL,
        sha256 BLOB NOT NULL
      );`,
  },
];

/** Outbox and checkpoint in one database, so that both move in one transaction. */
export class SqlMeterStore implements MeterStore {
  readonly #sql: Sql;
  readonly logEpoch: bigint;

  private constructor(sql: Sql, logEpoch: bigint) {
    this.#sql = sql;
    this.logEpoch = logEpoch;
  }

  /** `nowMs` becomes the epoch of a store that is made now. */
  static async open(dataDir: string, nowMs: number): Promise<SqlMeterStore> {
    const sql = await openSqlite({ path: join(dataDir, "billaged.db"), migrations });
    await sql.run("INSERT INTO log_epoch (id, epoch) VALUES (1, ?) ON CONFLICT DO NOTHING", [nowMs]);
    const row = await sql.one<{ epoch: bigint }>("SELECT epoch FROM log_epoch", [], { bigint: true });
    return new SqlMeterStore(sql, row?.epoch ?? BigInt(nowMs));
  }

  async checkpoint(): Promise<Checkpoint | undefined> {
    const row = await this.#sql.one<{ segment: number; position: number; snapshot: string }>(
      "SELECT segment, position, snapshot FROM checkpoint",
    );
    if (row === undefined) return undefined;
    const snapshot = JSON.parse(row.snapshot) as MeterSnapshot;
    if (snapshot.version !== 1) throw new Error(`the checkpoint is of version ${String(snapshot.version)}`);
    return { position: { segment: row.segment, offset: row.position }, snapshot };
  }

  async save(batches: readonly PendingBatch[], checkpoint?: Checkpoint): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      for (const { seq, batchId, zstd, bytes, sha256 } of batches) {
        await tx.run(
          "INSERT INTO outbox (seq, batch_id, zstd, bytes, sha256) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
          [seq, batchId, zstd, bytes, sha256],
        );
      }
      if (checkpoint === undefined) return;
      const { position, snapshot } = checkpoint;
      await tx.run(
        `INSERT INTO checkpoint (id, segment, position, snapshot) VALUES (1, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET segment = excluded.segment, position = excluded.position, snapshot = excluded.snapshot`,
        [position.segment, position.offset, JSON.stringify(snapshot)],
      );
    });
  }

  async pending(afterSeq: number, limit: number): Promise<PendingBatch[]> {
    const rows = await this.#sql.query<{
      seq: number;
      batch_id: string;
      zstd: Uint8Array;
      bytes: number;
      sha256: Uint8Array;
    }>("SELECT seq, batch_id, zstd, bytes, sha256 FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", [afterSeq, limit]);
    return rows.map(({ batch_id: batchId, ...row }) => ({ ...row, batchId }));
  }

  async settle(batchId: string): Promise<void> {
    await this.#sql.run("DELETE FROM outbox WHERE batch_id = ?", [batchId]);
  }

  async backlog(): Promise<{ batches: number; bytes: number }> {
    const row = await this.#sql.one<{ batches: number; bytes: number | null }>(
      "SELECT count(*) AS batches, sum(length(zstd)) AS bytes FROM outbox",
    );
    return { batches: row?.batches ?? 0, bytes: row?.bytes ?? 0 };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sql[Symbol.asyncDispose]();
  }
}
