import type { Sql } from "@unkey/sql";
import { type AuditRecord, brokenLink, type ChainedRecord, chainHash, chainStart } from "../domain/audit-chain.ts";

interface Columns {
  seq: number;
  event_id: string;
  tenant_id: string;
  at_ms: number;
  actor: string;
  action: string;
  target: string;
  outcome: string;
  request_id: string;
  hash: string;
}

export interface StoredRecord extends ChainedRecord {
  readonly seq: number;
}

/** The audit log: one chain over all tenants. Rows are only ever added. */
export class AuditStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** Adds `records` to the end of the chain in one transaction. */
  async append(records: readonly AuditRecord[]): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      const last = await tx.one<{ seq: number; hash: string }>(
        "SELECT seq, hash FROM audit_event ORDER BY seq DESC LIMIT 1",
      );
      let seq = last?.seq ?? 0;
      let hash = last?.hash ?? chainStart;
      for (const record of records) {
        seq += 1;
        hash = chainHash(hash, record);
        await tx.run(
          "INSERT INTO audit_event (seq, event_id, tenant_id, at_ms, actor, action, target, outcome, request_id, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
          [
            seq,
            record.eventId,
            record.tenantId,
            record.atMs,
            record.actor,
            record.action,
            record.target,
            record.outcome,
            record.requestId,
            hash,
          ],
        );
      }
    });
  }

  /** A tenant's records before `beforeSeq`, newest first. */
  async list(tenantId: string, limit: number, beforeSeq: number): Promise<StoredRecord[]> {
    const rows = await this.#sql.query<Columns>(
      "SELECT * FROM audit_event WHERE tenant_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
      [tenantId, beforeSeq, limit],
    );
    return rows.map(toRecord);
  }

  /** The event whose link is broken among the newest `count`, or undefined when all hold. */
  async verifyNewest(count: number): Promise<string | undefined> {
    const rows = await this.#sql.query<Columns>("SELECT * FROM audit_event ORDER BY seq DESC LIMIT ?", [count + 1]);
    const records = rows.map(toRecord).toReversed();
    const oldest = records[0];
    if (oldest === undefined) return undefined;
    if (oldest.seq === 1) return brokenLink(chainStart, records);
    return brokenLink(oldest.hash, records.slice(1));
  }
}

function toRecord(row: Columns): StoredRecord {
  return {
    seq: row.seq,
    eventId: row.event_id,
    tenantId: row.tenant_id,
    atMs: row.at_ms,
    actor: row.actor,
    action: row.action,
    target: row.target,
    outcome: row.outcome,
    requestId: row.request_id,
    hash: row.hash,
  };
}
