import type { AssetId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import type { Digest, Owner } from "../domain/asset.ts";
import { type CollectionRules, idleCutoffMs } from "../domain/collection.ts";
import type {
  BlobId,
  Candidate,
  Candidates,
  CollectionCatalog,
  HeldPart,
  Marked,
  Position,
  Recount,
  Swept,
} from "../ports.ts";
import { count, heldNow, partNow } from "./asset-rows.ts";

interface CandidateRow {
  readonly tenant_id: Owner;
  readonly asset_id: AssetId;
  readonly idle_since_ms: number;
  readonly blob_id: BlobId | null;
}

interface SliceRow extends CandidateRow {
  readonly size_bytes: number;
  /** 1 for what is garbage but for a lease, or for what it is a part of. */
  readonly held: number;
}

type RemovedRow = Pick<SliceRow, "tenant_id" | "asset_id" | "blob_id" | "size_bytes">;

/** A pass that a power failure undid is repeated by the next one. */
const unsynced = { durability: "process" } as const;

/** Binds the present instant. What is held is among the rows, so that no statement looks at more of them than its limit. */
const selectSlice = `
  SELECT a.tenant_id, a.asset_id, a.idle_since_ms, a.blob_id, a.size_bytes, (${heldNow} OR ${partNow}) AS held FROM assets a`;

/** The next marked ones; binds the last one's id, the pass, the cutoff and a limit. */
const sweepable = `${selectSlice}
  WHERE a.marked_by IS NOT NULL AND a.asset_id > ? AND a.marked_by < ? AND a.idle_since_ms < ?
  ORDER BY a.asset_id LIMIT ?`;
/** The next idle ones; binds the cutoff, the last one's idleness and id, and a limit. */
const markable = `${selectSlice}
  WHERE a.marked_by IS NULL AND a.idle_since_ms IS NOT NULL AND a.idle_since_ms < ?
    AND (a.idle_since_ms, a.asset_id) > (?, ?)
  ORDER BY a.idle_since_ms, a.asset_id LIMIT ?`;

interface Slice {
  readonly free: readonly SliceRow[];
  readonly end: Position | undefined;
}

async function lookFor(
  what: "sweepable" | "markable",
  sql: Pick<SqlStatements, "query">,
  rules: CollectionRules,
  after: Position | undefined,
  limit: number,
): Promise<Slice> {
  const cutoffMs = idleCutoffMs(rules);
  const rows =
    what === "sweepable"
      ? await sql.query<SliceRow>(sweepable, [rules.nowMs, after?.id ?? "", rules.pass, cutoffMs, limit])
      : await sql.query<SliceRow>(markable, [rules.nowMs, cutoffMs, after?.idleSinceMs ?? -1, after?.id ?? "", limit]);
  const end = rows.at(-1);
  return {
    free: rows.filter(({ held }) => held === 0),
    end: end && { id: end.asset_id, idleSinceMs: end.idle_since_ms },
  };
}

/** Assets by owner and id, as `keysOf` names them. */
const amongKeys = "(tenant_id, asset_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))";
const keysOf = (rows: readonly RemovedRow[] | readonly SliceRow[]): string =>
  JSON.stringify(rows.map((row) => [row.tenant_id, row.asset_id]));

export class SqlCollection implements CollectionCatalog {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  beginPass(nowMs: number): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      await tx.run("DELETE FROM leases WHERE expires_at_ms <= ?", [nowMs]);
      const row = await tx.one<{ pass: number }>("UPDATE collection SET pass = pass + 1 WHERE id = 1 RETURNING pass");
      if (row === undefined) throw new Error("the collection counter is missing");
      return row.pass;
    });
  }

  async sweepable(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Candidates> {
    return toCandidates(await lookFor("sweepable", this.#sql, rules, after, limit));
  }

  async markable(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Candidates> {
    return toCandidates(await lookFor("markable", this.#sql, rules, after, limit));
  }

  async heldParts(rules: CollectionRules, wholes: readonly AssetId[]): Promise<HeldPart[]> {
    const rows = await this.#sql.query<CandidateRow & { places: number }>(
      `SELECT a.tenant_id, a.asset_id, a.idle_since_ms, a.blob_id,
         (SELECT COUNT(*) FROM asset_parts o WHERE o.part_id = a.asset_id) AS places
       FROM asset_parts gone JOIN assets a ON a.tenant_id = gone.tenant_id AND a.asset_id = gone.part_id
       WHERE gone.asset_id IN (SELECT value FROM json_each(?))
         AND a.marked_by IS NULL AND a.idle_since_ms < ? AND NOT ${heldNow}`,
      [JSON.stringify(wholes), idleCutoffMs(rules), rules.nowMs],
    );
    return rows.map((row) => ({ ...toCandidate(row), places: row.places }));
  }

  async attachments(candidates: readonly Candidate[]): Promise<Pick<Candidate, "id" | "blob">[]> {
    const rows = await this.#sql.query<{ asset_id: AssetId; blob_id: BlobId | null }>(
      "SELECT asset_id, blob_id FROM assets WHERE attached_to <> '' AND attached_to IN (SELECT value FROM json_each(?))",
      [JSON.stringify(candidates.map(({ id }) => id))],
    );
    return rows.map((row) => ({ id: row.asset_id, blob: row.blob_id ?? undefined }));
  }

  async bytesOf(lost: ReadonlyMap<BlobId, number>): Promise<number> {
    const row = await this.#sql.one<{ bytes: number | null }>(
      `SELECT SUM(b.size_bytes) AS bytes FROM json_each(?) AS lost JOIN blobs b ON b.blob_id = lost.value ->> 0
       WHERE b.refs <= lost.value ->> 1`,
      [JSON.stringify([...lost])],
    );
    return row?.bytes ?? 0;
  }

  sweep(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Swept> {
    // What is sweepable is decided where it is removed: a lease that came before is seen.
    return this.#sql.transaction(async (tx) => {
      const { free, end } = await lookFor("sweepable", tx, rules, after, limit);
      if (free.length === 0) return { ids: [], end, freedBytes: 0 };
      await tx.run(`DELETE FROM assets WHERE ${amongKeys}`, [keysOf(free)]);
      const gone = [...free, ...(await removeAttachments(tx, free))];
      await discount(tx, gone);
      return { ids: gone.map((row) => row.asset_id), end, freedBytes: await unrefer(tx, gone) };
    }, unsynced);
  }

  mark(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Marked> {
    return this.#sql.transaction(async (tx) => {
      const { free, end } = await lookFor("markable", tx, rules, after, limit);
      if (free.length > 0)
        await tx.run(`UPDATE assets SET marked_by = ? WHERE ${amongKeys}`, [rules.pass, keysOf(free)]);
      return { ids: free.map((row) => row.asset_id), end };
    }, unsynced);
  }

  settle(): Promise<void> {
    return this.#sql.settle();
  }

  async unknown(digests: readonly Digest[]): Promise<Digest[]> {
    const rows = await this.#sql.query<{ digest: Digest }>(
      "SELECT value AS digest FROM json_each(?) WHERE value NOT IN (SELECT digest FROM blobs)",
      [JSON.stringify(digests)],
    );
    return rows.map(({ digest }) => digest);
  }

  async recount(after: BlobId, limit: number): Promise<Recount> {
    const next = "SELECT blob_id FROM blobs WHERE blob_id > ? ORDER BY blob_id LIMIT ?";
    const last = await this.#sql.one<{ end: BlobId | null }>(`SELECT MAX(blob_id) AS "end" FROM (${next})`, [
      after,
      limit,
    ]);
    const end = last?.end ?? undefined;
    if (end === undefined) return { disagreeing: [], end };
    const disagreeing = await this.#sql.query<{ digest: Digest; refs: number; found: number }>(
      `SELECT * FROM (
         SELECT digest, refs, (SELECT COUNT(*) FROM assets a WHERE a.blob_id = b.blob_id) AS found
         FROM blobs b WHERE blob_id > ? AND blob_id <= ?) WHERE refs <> found`,
      [after, end],
    );
    return { disagreeing, end };
  }
}

function toCandidates({ free, end }: Slice): Candidates {
  return { found: free.map(toCandidate), end };
}

function toCandidate(row: CandidateRow): Candidate {
  const { tenant_id: owner, asset_id: id, idle_since_ms: idleSinceMs } = row;
  return { owner, id, blob: row.blob_id ?? undefined, idleSinceMs };
}

async function removeAttachments(tx: SqlStatements, parents: readonly SliceRow[]): Promise<RemovedRow[]> {
  // The first condition says what the index says, so that it is used.
  const attached = await tx.query<RemovedRow & { state: string }>(
    `DELETE FROM assets WHERE attached_to <> '' AND attached_to IN (SELECT value FROM json_each(?))
     RETURNING tenant_id, asset_id, state, blob_id, size_bytes`,
    [JSON.stringify(parents.map((row) => row.asset_id))],
  );
  for (const { tenant_id, asset_id, state } of attached) {
    if (state !== "uploading") continue;
    await tx.run("DELETE FROM uploads WHERE tenant_id = ? AND asset_id = ?", [tenant_id, asset_id]);
  }
  return attached;
}

async function discount(tx: SqlStatements, gone: readonly RemovedRow[]): Promise<void> {
  const less = new Map<Owner, { bytes: number; assets: number }>();
  for (const { tenant_id, size_bytes } of gone) {
    const { bytes, assets } = less.get(tenant_id) ?? { bytes: 0, assets: 0 };
    less.set(tenant_id, { bytes: bytes - size_bytes, assets: assets - 1 });
  }
  for (const [owner, change] of less) await count(tx, owner, change);
}

/** Takes back one reference per removed asset; answers the bytes that nothing refers to any more. */
async function unrefer(tx: SqlStatements, gone: readonly RemovedRow[]): Promise<number> {
  const times = new Map<BlobId, number>();
  for (const { blob_id } of gone) if (blob_id !== null) times.set(blob_id, (times.get(blob_id) ?? 0) + 1);
  await tx.run(
    `UPDATE blobs SET refs = refs - taken.times
     FROM (SELECT value ->> 0 AS blob_id, value ->> 1 AS times FROM json_each(?)) AS taken WHERE blobs.blob_id = taken.blob_id`,
    [JSON.stringify([...times])],
  );
  // Summed there: a row for each would be an object for each here.
  const row = await tx.one<{ bytes: number | null }>(
    "SELECT SUM(size_bytes) AS bytes FROM blobs WHERE refs <= 0 AND blob_id IN (SELECT value FROM json_each(?))",
    [JSON.stringify([...times.keys()])],
  );
  return row?.bytes ?? 0;
}
