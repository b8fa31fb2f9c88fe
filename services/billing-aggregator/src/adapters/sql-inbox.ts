import { ServiceError } from "@unkey/base";
import { isSqlError, type Sql, type SqlStatements } from "@unkey/sql";
import type { Judgement, SeriesHead } from "../domain/check-window.ts";
import type { BatchEnvelope, OpenBatch } from "../domain/open-batch.ts";
import { type SeriesKey, seriesName } from "../domain/usage-window.ts";
import type { Acceptance, Inbox, InboxEntry, Progress } from "../ports.ts";

/** Batches that nobody can bill are kept to be looked at, not collected. */
const maxQuarantined = 1_000;
/** Rows deleted in one transaction, so that batches do not wait behind it. */
const pruneStep = 500;

interface InboxRow {
  readonly seq: number;
  readonly batch_id: string;
  readonly sha256: Uint8Array;
  readonly body_bytes: number;
  readonly body_zstd: Uint8Array;
  readonly set_aside: string;
}

interface HeadRow {
  readonly tenant_id: string;
  readonly app_id: string;
  readonly start_ms: number;
  readonly covered_to_ms: number;
  readonly log_epoch: string;
  readonly revision: number;
  readonly hash: string;
  readonly closing: string;
  readonly final: number;
}

/** The inbox in a SQL database; it keeps at most `maxBytes` of compressed batches. */
export class SqlInbox implements Inbox {
  readonly #sql: Sql;
  readonly #maxBytes: number;

  constructor(sql: Sql, { maxBytes }: { readonly maxBytes: number }) {
    this.#sql = sql;
    this.#maxBytes = maxBytes;
  }

  accept(
    envelope: BatchEnvelope,
    batch: OpenBatch,
    receivedAtMs: number,
    judge: (heads: ReadonlyMap<string, SeriesHead>) => Judgement,
  ): Promise<Acceptance> {
    return this.#durably((tx) => this.#accept(tx, envelope, batch, receivedAtMs, judge));
  }

  async #accept(
    tx: SqlStatements,
    envelope: BatchEnvelope,
    batch: OpenBatch,
    receivedAtMs: number,
    judge: (heads: ReadonlyMap<string, SeriesHead>) => Judgement,
  ): Promise<Acceptance> {
    const { batchId, sha256, zstd } = envelope;
    const known = await tx.one<{ sha256: Uint8Array }>("SELECT sha256 FROM inbox WHERE batch_id = ?", [batchId]);
    if (known !== undefined) return { kind: Buffer.from(known.sha256).equals(sha256) ? "duplicate" : "conflict" };
    const pipeline = await tx.one<{ last_seq: number; inbox_bytes: number }>(
      "UPDATE pipeline SET last_seq = last_seq + 1, inbox_bytes = inbox_bytes + ? WHERE id = 1 RETURNING *",
      [zstd.length],
    );
    const seq = pipeline?.last_seq ?? 0;
    if ((pipeline?.inbox_bytes ?? 0) > this.#maxBytes) {
      throw new ServiceError("INBOX_FULL", `the inbox holds the ${this.#maxBytes} bytes that it may hold`);
    }
    const { setAside, heads } = judge(await readHeads(tx, batch.windows));
    await tx.run(
      `INSERT INTO inbox (seq, batch_id, sha256, host_id, minute_at_ms, received_at_ms, body_bytes, body_zstd, set_aside)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      [
        seq,
        batchId,
        sha256,
        batch.hostId,
        batch.minuteAtMs,
        receivedAtMs,
        envelope.bytes,
        zstd,
        JSON.stringify(setAside),
      ],
    );
    for (const head of heads) await writeHead(tx, head);
    await tx.run(
      `INSERT INTO host_progress (host_id, minute_at_ms, received_at_ms) VALUES (?, ?, ?)
       ON CONFLICT (host_id) DO UPDATE SET received_at_ms = excluded.received_at_ms,
         minute_at_ms = CASE WHEN excluded.minute_at_ms > host_progress.minute_at_ms
           THEN excluded.minute_at_ms ELSE host_progress.minute_at_ms END`,
      [batch.hostId, batch.minuteAtMs, receivedAtMs],
    );
    return { kind: "accepted", seq, setAside };
  }

  async quarantine(envelope: BatchEnvelope, receivedAtMs: number, why: string): Promise<void> {
    await this.#durably(async (tx) => {
      const count = await tx.one<{ count: number }>("SELECT count(*) AS count FROM quarantined_batch");
      if ((count?.count ?? 0) >= maxQuarantined) {
        throw new ServiceError("INBOX_FULL", `${maxQuarantined} batches are in quarantine already`);
      }
      await tx.run(
        `INSERT INTO quarantined_batch (batch_id, sha256, received_at_ms, why, body_bytes, body_zstd)
         VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (batch_id, sha256) DO NOTHING`,
        [envelope.batchId, envelope.sha256, receivedAtMs, why, envelope.bytes, envelope.zstd],
      );
    });
  }

  async after(seq: number, limit: number): Promise<InboxEntry[]> {
    const rows = await this.#sql.query<InboxRow>(
      "SELECT seq, batch_id, sha256, body_bytes, body_zstd, set_aside FROM inbox WHERE seq > ? ORDER BY seq LIMIT ?",
      [seq, limit],
    );
    return rows.map((row) => ({
      seq: row.seq,
      envelope: { batchId: row.batch_id, zstd: row.body_zstd, bytes: row.body_bytes, sha256: row.sha256 },
      setAside: new Set((JSON.parse(row.set_aside) as { index: number }[]).map(({ index }) => index)),
    }));
  }

  async lastSeq(): Promise<number> {
    const row = await this.#sql.one<{ last_seq: number }>("SELECT last_seq FROM pipeline WHERE id = 1");
    return row?.last_seq ?? 0;
  }

  async prune(projectedSeq: number, olderThanMs: number): Promise<number> {
    let pruned = 0;
    for (let step = pruneStep; step === pruneStep; pruned += step) {
      step = await this.#sql.transaction((tx) => this.#prune(tx, projectedSeq, olderThanMs));
    }
    await this.#sql.run("DELETE FROM series_head WHERE covered_to_ms < ?", [olderThanMs]);
    return pruned;
  }

  async #prune(tx: SqlStatements, projectedSeq: number, olderThanMs: number): Promise<number> {
    const pipeline = await tx.one<{ inbox_bytes: number }>("SELECT inbox_bytes FROM pipeline WHERE id = 1");
    // Room for new batches is made before it is needed.
    const surplus = (pipeline?.inbox_bytes ?? 0) > this.#maxBytes * 0.9;
    const rows = await tx.query<{ bytes: number }>(
      `DELETE FROM inbox WHERE seq IN
         (SELECT seq FROM inbox WHERE seq <= ? AND (received_at_ms < ? OR ? = 1) ORDER BY seq LIMIT ?)
       RETURNING length(body_zstd) AS bytes`,
      [projectedSeq, olderThanMs, surplus ? 1 : 0, pruneStep],
    );
    const freed = rows.reduce((sum, { bytes }) => sum + bytes, 0);
    if (freed > 0) await tx.run("UPDATE pipeline SET inbox_bytes = inbox_bytes - ? WHERE id = 1", [freed]);
    return rows.length;
  }

  async progress(query: {
    readonly tenantId: string;
    readonly appId: string;
    readonly vmId: string;
    readonly aliveSinceMs: number;
    readonly afterSeq: number;
  }): Promise<Progress> {
    const { tenantId, appId, vmId } = query;
    type Least = { least: number | null };
    const series = await this.#sql.one<Least>(
      `SELECT min(covered_to_ms) AS least FROM series_head
       WHERE tenant_id = ? AND final = 0 AND (? = '' OR app_id = ?) AND (? = '' OR vm_id = ?)`,
      [tenantId, appId, appId, vmId, vmId],
    );
    const hosts = await this.#sql.one<Least>(
      "SELECT min(minute_at_ms) AS least FROM host_progress WHERE received_at_ms >= ?",
      [query.aliveSinceMs],
    );
    const unprojected = await this.#sql.one<Least>("SELECT min(minute_at_ms) AS least FROM inbox WHERE seq > ?", [
      query.afterSeq,
    ]);
    return {
      openSeriesMs: series?.least ?? undefined,
      hostsMs: hosts?.least ?? undefined,
      unprojectedMs: unprojected?.least ?? undefined,
    };
  }

  async #durably<T>(body: (tx: SqlStatements) => Promise<T>): Promise<T> {
    try {
      return await this.#sql.transaction(body);
    } catch (cause) {
      if (isSqlError(cause, "full")) throw new ServiceError("INBOX_FULL", "the disk of the inbox is full", { cause });
      throw cause;
    }
  }
}

async function readHeads(tx: SqlStatements, keys: readonly SeriesKey[]): Promise<Map<string, SeriesHead>> {
  const heads = new Map<string, SeriesHead>();
  for (const key of keys) {
    const name = seriesName(key);
    if (heads.has(name)) continue;
    const row = await tx.one<HeadRow>(
      `SELECT tenant_id, app_id, start_ms, covered_to_ms, log_epoch, revision, hash, closing, final
       FROM series_head WHERE host_id = ? AND vm_id = ? AND incarnation = ?`,
      [key.hostId, key.vmId, key.incarnation],
    );
    if (row === undefined) continue;
    heads.set(name, {
      hostId: key.hostId,
      vmId: key.vmId,
      incarnation: key.incarnation,
      tenantId: row.tenant_id,
      appId: row.app_id,
      startMs: row.start_ms,
      coveredToMs: row.covered_to_ms,
      logEpoch: BigInt(row.log_epoch),
      revision: row.revision,
      hash: row.hash,
      closing: row.closing,
      final: row.final === 1,
    });
  }
  return heads;
}

async function writeHead(tx: SqlStatements, head: SeriesHead): Promise<void> {
  await tx.run(
    `INSERT INTO series_head (tenant_id, app_id, vm_id, incarnation, host_id, start_ms, covered_to_ms, log_epoch,
       revision, hash, closing, final) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (host_id, vm_id, incarnation) DO UPDATE SET start_ms = excluded.start_ms,
       covered_to_ms = excluded.covered_to_ms, log_epoch = excluded.log_epoch, revision = excluded.revision,
       hash = excluded.hash, closing = excluded.closing, final = excluded.final`,
    [
      head.tenantId,
      head.appId,
      head.vmId,
      head.incarnation,
      head.hostId,
      head.startMs,
      head.coveredToMs,
      head.logEpoch.toString(),
      head.revision,
      head.hash,
      head.closing,
      head.final ? 1 : 0,
    ],
  );
}
