import type { Sql } from "@unkey/sql";
import type { Digest } from "../domain/asset.ts";
import type { BlobCatalog, BlobRecord, ScrubPosition } from "../ports.ts";
import { idsOfDigest, mend } from "./asset-rows.ts";

interface BlobRow {
  readonly digest: Digest;
  readonly size_bytes: number;
  readonly refs: number;
  readonly identity: string | null;
}

export class SqlBlobs implements BlobCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async find(digest: Digest): Promise<BlobRecord | undefined> {
    const row = await this.#sql.one<BlobRow>("SELECT * FROM blobs WHERE digest = ?", [digest]);
    return row === undefined ? undefined : toRecord(row);
  }

  async after(digest: Digest | "", limit: number): Promise<BlobRecord[]> {
    const sql = "SELECT * FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?";
    return (await this.#sql.query<BlobRow>(sql, [digest, limit])).map(toRecord);
  }

  noteRight(found: readonly { readonly digest: Digest; readonly identity: string }[], nowMs: number): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      let mended = 0;
      for (const blob of found) mended += await mend(tx, blob, nowMs);
      return mended;
    });
  }

  noteWrong(digest: Digest): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      await tx.run("UPDATE blobs SET identity = NULL, verified_at_ms = NULL WHERE digest = ?", [digest]);
      const sql = `UPDATE assets SET state = 'error' WHERE state = 'available' AND asset_id IN ${idsOfDigest}`;
      return (await tx.run(sql, [digest])).changes;
    });
  }

  async damaged(): Promise<number> {
    const row = await this.#sql.one<{ n: number }>("SELECT COUNT(*) AS n FROM assets WHERE state = 'error'");
    return row?.n ?? 0;
  }

  async scrubPosition(): Promise<ScrubPosition> {
    const row = await this.#sql.one<{ after_digest: Digest | ""; round_started_at_ms: number }>("SELECT * FROM scrub");
    return { after: row?.after_digest ?? "", startedAtMs: row?.round_started_at_ms ?? 0 };
  }

  async setScrubPosition({ after, startedAtMs }: ScrubPosition): Promise<void> {
    await this.#sql.run("UPDATE scrub SET after_digest = ?, round_started_at_ms = ?", [after, startedAtMs]);
  }
}

function toRecord(row: BlobRow): BlobRecord {
  return { digest: row.digest, sizeBytes: row.size_bytes, refs: row.refs, identity: row.identity ?? undefined };
}
