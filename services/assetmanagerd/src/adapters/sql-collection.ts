import type { AssetId } from "@unkey/base";
import type { Sql, SqlStatements, SqlValue } from "@unkey/sql";
import type { Digest, Owner } from "../domain/asset.ts";
import { type CollectionRules, idleCutoffMs } from "../domain/collection.ts";
import type { Candidate, Census, CollectionCatalog, HeldPart, Marked, Position, Swept } from "../ports.ts";
import { count, heldNow, partNow } from "./asset-rows.ts";

interface PositionRow {
  readonly asset_id: AssetId;
  readonly idle_since_ms: number;
}

interface CandidateRow extends PositionRow {
  readonly tenant_id: Owner;
  readonly digest: Digest | null;
}

interface RemovedRow extends CandidateRow {
  readonly state: string;
  readonly size_bytes: number;
}

/** A pass that a power failure undid is repeated by the next one. */
const unsynced = { durability: "process" } as const;
const removed = "RETURNING tenant_id, asset_id, state, digest, size_bytes, idle_since_ms";

/** Binds the last one's id, the pass, the cutoff, the present instant and a limit. */
const sweepable = `FROM assets a
  WHERE a.marked_by IS NOT NULL AND a.asset_id > ? AND a.marked_by < ? AND a.idle_since_ms < ? AND NOT ${heldNow} AND NOT ${partNow}
  ORDER BY a.asset_id LIMIT ?`;
/** Binds the cutoff, the last one's idleness and id, the present instant and a limit. */
const markable = `FROM assets a
  WHERE a.marked_by IS NULL AND a.idle_since_ms IS NOT NULL AND a.idle_since_ms < ?
    AND (a.idle_since_ms, a.asset_id) > (?, ?) AND NOT ${heldNow} AND NOT ${partNow}
  ORDER BY a.idle_since_ms, a.asset_id LIMIT ?`;

function sweepableAfter(rules: CollectionRules, after: Position | undefined, limit: number): SqlValue[] {
  return [after?.id ?? "", rules.pass, idleCutoffMs(rules), rules.nowMs, limit];
}

function markableAfter(rules: CollectionRules, after: Position | undefined, limit: number): SqlValue[] {
  return [idleCutoffMs(rules), after?.idleSinceMs ?? -1, after?.id ?? "", rules.nowMs, limit];
}

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

  async sweepable(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Candidate[]> {
    const rows = await this.#sql.query<CandidateRow>(
      `SELECT a.tenant_id, a.asset_id, a.digest, a.idle_since_ms ${sweepable}`,
      sweepableAfter(rules, after, limit),
    );
    return rows.map(toCandidate);
  }

  async markable(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Candidate[]> {
    const rows = await this.#sql.query<CandidateRow>(
      `SELECT a.tenant_id, a.asset_id, a.digest, a.idle_since_ms ${markable}`,
      markableAfter(rules, after, limit),
    );
    return rows.map(toCandidate);
  }

  async heldParts(rules: CollectionRules, wholes: readonly AssetId[]): Promise<HeldPart[]> {
    const rows = await this.#sql.query<CandidateRow & { places: number }>(
      `SELECT a.tenant_id, a.asset_id, a.digest, a.idle_since_ms,
         (SELECT COUNT(*) FROM asset_parts o WHERE o.part_id = a.asset_id) AS places
       FROM asset_parts gone JOIN assets a ON a.tenant_id = gone.tenant_id AND a.asset_id = gone.part_id
       WHERE gone.asset_id IN (SELECT value FROM json_each(?))
         AND a.marked_by IS NULL AND a.idle_since_ms < ? AND NOT ${heldNow}`,
      [JSON.stringify(wholes), idleCutoffMs(rules), rules.nowMs],
    );
    return rows.map((row) => ({ ...toCandidate(row), places: row.places }));
  }

  async attachments(candidates: readonly Candidate[]): Promise<Pick<Candidate, "id" | "digest">[]> {
    const rows = await this.#sql.query<{ asset_id: AssetId; digest: Digest | null }>(
      `SELECT asset_id, digest FROM assets WHERE attached_to <> '' AND attached_to IN (${candidates.map(() => "?").join(", ")})`,
      candidates.map(({ id }) => id),
    );
    return rows.map((row) => ({ id: row.asset_id, digest: row.digest ?? undefined }));
  }

  sweep(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Swept> {
    // What is sweepable is decided where it is removed: a lease that came before is seen.
    return this.#sql.transaction(async (tx) => {
      const own = await tx.query<RemovedRow>(
        `DELETE FROM assets WHERE rowid IN (SELECT a.rowid ${sweepable}) ${removed}`,
        sweepableAfter(rules, after, limit),
      );
      const gone = [...own, ...(await removeAttachments(tx, own))];
      await discount(tx, gone);
      const unreferenced = await unrefer(tx, gone);
      return { ids: gone.map((row) => row.asset_id), end: last(own, (a, b) => a.asset_id > b.asset_id), unreferenced };
    }, unsynced);
  }

  mark(rules: CollectionRules, after: Position | undefined, limit: number): Promise<Marked> {
    return this.#sql.transaction(async (tx) => {
      const rows = await tx.query<PositionRow>(
        `UPDATE assets SET marked_by = ? WHERE rowid IN (SELECT a.rowid ${markable}) RETURNING asset_id, idle_since_ms`,
        [rules.pass, ...markableAfter(rules, after, limit)],
      );
      const end = last(
        rows,
        (a, b) => a.idle_since_ms > b.idle_since_ms || (a.idle_since_ms === b.idle_since_ms && a.asset_id > b.asset_id),
      );
      return { ids: rows.map((row) => row.asset_id), end };
    }, unsynced);
  }

  settle(): Promise<void> {
    return this.#sql.settle();
  }

  async unknown(digests: readonly Digest[]): Promise<Digest[]> {
    const places = digests.map(() => "?").join(", ");
    const rows = await this.#sql.query<{ digest: Digest }>(
      `SELECT digest FROM blobs WHERE digest IN (${places}) UNION SELECT digest FROM assets WHERE digest IN (${places})`,
      [...digests, ...digests],
    );
    const known = new Set(rows.map((row) => row.digest));
    return digests.filter((digest) => !known.has(digest));
  }

  census(from: Digest, to: Digest): Promise<Census[]> {
    return this.#sql.query<{ digest: Digest; refs: number; found: number }>(
      `SELECT b.digest, b.refs, (SELECT COUNT(*) FROM assets a WHERE a.digest = b.digest) AS found
       FROM blobs b WHERE b.digest BETWEEN ? AND ?
       UNION ALL
       SELECT a.digest, 0 AS refs, COUNT(*) AS found FROM assets a
       WHERE a.digest BETWEEN ? AND ? AND NOT EXISTS (SELECT 1 FROM blobs b WHERE b.digest = a.digest) GROUP BY a.digest`,
      [from, to, from, to],
    );
  }

  forgetBlob(digest: Digest): Promise<boolean> {
    return this.#sql.transaction(async (tx) => {
      await tx.run(
        "DELETE FROM blobs WHERE digest = ? AND refs <= 0 AND NOT EXISTS (SELECT 1 FROM assets a WHERE a.digest = blobs.digest)",
        [digest],
      );
      const left = await tx.one(
        "SELECT 1 AS found FROM blobs WHERE digest = ? UNION ALL SELECT 1 FROM assets WHERE digest = ? LIMIT 1",
        [digest, digest],
      );
      return left === undefined;
    });
  }
}

function toCandidate(row: CandidateRow): Candidate {
  const { tenant_id: owner, asset_id: id, idle_since_ms: idleSinceMs } = row;
  return { owner, id, digest: row.digest ?? undefined, idleSinceMs };
}

/** The furthest of rows that came in no order. */
function last<R extends PositionRow>(rows: readonly R[], isBehind: (a: R, b: R) => boolean): Position | undefined {
  const [first, ...others] = rows;
  if (first === undefined) return undefined;
  const { asset_id: id, idle_since_ms: idleSinceMs } = others.reduce((a, b) => (isBehind(b, a) ? b : a), first);
  return { id, idleSinceMs };
}

async function removeAttachments(tx: SqlStatements, parents: readonly RemovedRow[]): Promise<RemovedRow[]> {
  // The first condition says what the index says, so that it is used.
  const attached = await tx.query<RemovedRow>(
    `DELETE FROM assets WHERE attached_to <> '' AND attached_to IN (SELECT value FROM json_each(?)) ${removed}`,
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

/** Takes back one reference per removed asset; what nobody refers to any more is forgotten and answered. */
async function unrefer(tx: SqlStatements, gone: readonly RemovedRow[]) {
  const times = new Map<Digest, number>();
  for (const { digest } of gone) if (digest !== null) times.set(digest, (times.get(digest) ?? 0) + 1);
  const taken = JSON.stringify([...times].toSorted(([a], [b]) => (a < b ? -1 : 1)));
  await tx.run(
    `UPDATE blobs SET refs = refs - taken.times
     FROM (SELECT value ->> 0 AS digest, value ->> 1 AS times FROM json_each(?)) AS taken WHERE blobs.digest = taken.digest`,
    [taken],
  );
  // Only when count and assets both say that nobody is left do the bytes go. The census reports the rest.
  const rows = await tx.query<{ digest: Digest; size_bytes: number }>(
    `DELETE FROM blobs WHERE digest IN (SELECT value ->> 0 FROM json_each(?)) AND refs <= 0
       AND NOT EXISTS (SELECT 1 FROM assets a WHERE a.digest = blobs.digest)
     RETURNING digest, size_bytes`,
    [taken],
  );
  return rows.map((row) => ({ digest: row.digest, sizeBytes: row.size_bytes }));
}
