import type { AssetId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import type { Digest, Owner } from "../domain/asset.ts";
import { type CollectionRules, idleCutoffMs } from "../domain/collection.ts";
import type { Candidate, Census, CollectionCatalog, Swept } from "../ports.ts";
import { count, heldNow } from "./asset-rows.ts";

interface CandidateRow {
  readonly tenant_id: Owner;
  readonly asset_id: AssetId;
  readonly digest: Digest | null;
  readonly idle_since_ms: number;
}

interface RemovedRow {
  readonly tenant_id: Owner;
  readonly asset_id: AssetId;
  readonly state: string;
  readonly digest: Digest | null;
  readonly size_bytes: number;
}

/** A pass that a power failure undid is repeated by the next one. */
const lazy = { lazy: true };
const removed = "RETURNING tenant_id, asset_id, state, digest, size_bytes";
/** The second condition says what the index says, so that it is used. */
const deleteAttachments = `DELETE FROM assets WHERE attached_to = ? AND attached_to <> '' ${removed}`;

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

  async sweepable(rules: CollectionRules, after: Candidate | undefined, limit: number): Promise<Candidate[]> {
    const rows = await this.#sql.query<CandidateRow>(
      `SELECT a.tenant_id, a.asset_id, a.digest, a.idle_since_ms FROM assets a
       WHERE a.marked_by IS NOT NULL AND a.asset_id > ? AND a.marked_by < ? AND a.idle_since_ms < ? AND NOT ${heldNow}
       ORDER BY a.asset_id LIMIT ?`,
      [after?.id ?? "", rules.pass, idleCutoffMs(rules), rules.nowMs, limit],
    );
    return rows.map(toCandidate);
  }

  async markable(rules: CollectionRules, after: Candidate | undefined, limit: number): Promise<Candidate[]> {
    const rows = await this.#sql.query<CandidateRow>(
      `SELECT a.tenant_id, a.asset_id, a.digest, a.idle_since_ms FROM assets a
       WHERE a.marked_by IS NULL AND a.idle_since_ms IS NOT NULL AND a.idle_since_ms < ?
         AND (a.idle_since_ms, a.asset_id) > (?, ?) AND NOT ${heldNow}
       ORDER BY a.idle_since_ms, a.asset_id LIMIT ?`,
      [idleCutoffMs(rules), after?.idleSinceMs ?? -1, after?.id ?? "", rules.nowMs, limit],
    );
    return rows.map(toCandidate);
  }

  async attachments(candidates: readonly Candidate[]): Promise<Pick<Candidate, "id" | "digest">[]> {
    const rows = await this.#sql.query<{ asset_id: AssetId; digest: Digest | null }>(
      `SELECT asset_id, digest FROM assets WHERE attached_to <> '' AND attached_to IN (${candidates.map(() => "?").join(", ")})`,
      candidates.map(({ id }) => id),
    );
    return rows.map((row) => ({ id: row.asset_id, digest: row.digest ?? undefined }));
  }

  sweep(candidates: readonly Candidate[], rules: CollectionRules): Promise<Swept> {
    return this.#sql.transaction(async (tx) => {
      const gone: RemovedRow[] = [];
      const parents = await withAttachments(tx, candidates);
      for (const { owner, id } of candidates) {
        // Decided again inside the transaction: a lease may have arrived since the pass looked.
        const row = await tx.one<RemovedRow>(
          `DELETE FROM assets AS a WHERE a.tenant_id = ? AND a.asset_id = ? AND a.marked_by < ? AND a.idle_since_ms < ?
             AND NOT ${heldNow} ${removed}`,
          [owner, id, rules.pass, idleCutoffMs(rules), rules.nowMs],
        );
        if (row === undefined) continue;
        gone.push(row);
        if (!parents.has(id)) continue;
        for (const attached of await tx.query<RemovedRow>(deleteAttachments, [id])) {
          gone.push(attached);
          if (attached.state !== "uploading") continue;
          await tx.run("DELETE FROM uploads WHERE tenant_id = ? AND asset_id = ?", [owner, attached.asset_id]);
        }
      }
      await discount(tx, gone);
      return { ids: gone.map((row) => row.asset_id), unreferenced: await unrefer(tx, gone) };
    }, lazy);
  }

  async mark(candidates: readonly Candidate[], rules: CollectionRules): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      for (const { owner, id } of candidates) {
        await tx.run(
          "UPDATE assets SET marked_by = ? WHERE tenant_id = ? AND asset_id = ? AND marked_by IS NULL AND idle_since_ms < ?",
          [rules.pass, owner, id, idleCutoffMs(rules)],
        );
      }
    }, lazy);
  }

  async settle(): Promise<void> {
    await this.#sql.run("UPDATE collection SET pass = pass WHERE id = 1");
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

/** Those of the candidates that something is attached to. */
async function withAttachments(tx: SqlStatements, candidates: readonly Candidate[]): Promise<Set<AssetId>> {
  const rows = await tx.query<{ attached_to: AssetId }>(
    `SELECT DISTINCT attached_to FROM assets WHERE attached_to <> '' AND attached_to IN (${candidates.map(() => "?").join(", ")})`,
    candidates.map(({ id }) => id),
  );
  return new Set(rows.map((row) => row.attached_to));
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
  const unreferenced: { digest: Digest; sizeBytes: number }[] = [];
  for (const { digest } of gone) {
    if (digest === null) continue;
    // Only when count and assets both say that nobody is left do the bytes go. The census reports the rest.
    const last = await tx.one<{ size_bytes: number }>(
      `DELETE FROM blobs WHERE digest = ? AND refs <= 1 AND NOT EXISTS (SELECT 1 FROM assets a WHERE a.digest = blobs.digest)
       RETURNING size_bytes`,
      [digest],
    );
    if (last === undefined) await tx.run("UPDATE blobs SET refs = refs - 1 WHERE digest = ?", [digest]);
    else unreferenced.push({ digest, sizeBytes: last.size_bytes });
  }
  return unreferenced;
}
