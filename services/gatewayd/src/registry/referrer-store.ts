import type { Sql } from "@unkey/sql";
import type { Place } from "./blob-store.ts";
import type { Sha256 } from "./digest.ts";

export interface ReferrerRow {
  readonly digest: Sha256;
  readonly mediaType: string;
  readonly sizeBytes: number;
  readonly artifactType: string;
  readonly annotations: Readonly<Record<string, string>>;
}

interface ReferrerColumns {
  digest: Sha256;
  media_type: string;
  size_bytes: number;
  artifact_type: string;
  annotations: string;
}

/** Of a character in JSON. */
const maxEscape = 6;
/** Of a descriptor in JSON, without its annotations and artifact type. */
const descriptorBytes = 300;

/** Manifests by the one that they are about. */
export class ReferrerStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /**
   * Manifests that name `subject`, by digest after `last`; only those of a type when `artifactType` is not empty. A page ends before
   * its JSON is longer than `maxBytes`, but has one manifest at least: what a tenant has pushed may be more than memory holds.
   */
  async list(
    { tenantId, repository }: Place,
    query: {
      readonly subject: string;
      readonly artifactType: string;
      readonly last: string;
      readonly limit: number;
      readonly maxBytes: number;
    },
  ): Promise<{ readonly rows: readonly ReferrerRow[]; readonly more: boolean }> {
    const { subject, artifactType, last, limit, maxBytes } = query;
    const ofType = artifactType === "" ? "" : "AND m.artifact_type = ?";
    const from = `FROM registry_manifest m
       JOIN registry_blob b ON b.tenant_id = m.tenant_id AND b.digest = m.digest
       WHERE m.tenant_id = ? AND m.repository = ? AND m.subject = ? AND m.subject <> '' AND m.digest > ? ${ofType}`;
    const named = [tenantId, repository, subject, last, ...(artifactType === "" ? [] : [artifactType])];
    const sizes = await this.#sql.query<{ digest: Sha256; bytes: number }>(
      `SELECT m.digest, octet_length(m.annotations) + ${maxEscape} * octet_length(m.artifact_type) AS bytes ${from}
       ORDER BY m.digest LIMIT ?`,
      [...named, limit + 1],
    );
    let bytes = 0;
    const end = sizes.findIndex((one, index) => {
      bytes += one.bytes + descriptorBytes;
      return index === limit || (index > 0 && bytes > maxBytes);
    });
    const until = sizes.at(end < 0 ? -1 : end - 1);
    if (until === undefined) return { rows: [], more: false };
    const rows = await this.#sql.query<ReferrerColumns>(
      `SELECT m.digest, m.media_type, m.artifact_type, m.annotations, b.size_bytes ${from} AND m.digest <= ?
       ORDER BY m.digest LIMIT ?`,
      [...named, until.digest, limit],
    );
    return {
      rows: rows.map((row) => ({
        digest: row.digest,
        mediaType: row.media_type,
        sizeBytes: row.size_bytes,
        artifactType: row.artifact_type,
        annotations: JSON.parse(row.annotations) as Record<string, string>,
      })),
      more: end >= 0,
    };
  }
}
