import { type AssetId, type DeploymentId, ServiceError, type TenantId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import { ensureRepository, expireBlob, type Place, type StoredBlob, saveBlob } from "./blob-store.ts";
import { isSha256, type Sha256 } from "./digest.ts";
import type { ManifestDocument } from "./manifest-document.ts";

export interface ManifestRow extends StoredBlob {
  readonly mediaType: string;
}

interface ManifestColumns {
  digest: Sha256;
  media_type: string;
  asset_id: AssetId;
  size_bytes: number;
}

const batchSize = 400;
/** Parts that a deployment keeps from release: an index of many platforms has some hundred. */
const maxHeld = 20_000;

/** Manifests, what they refer to, and the tags that point to them. */
export class ManifestStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** By tag or digest. */
  async find({ tenantId, repository }: Place, reference: string): Promise<ManifestRow | undefined> {
    const digest = isSha256(reference)
      ? "?"
      : "(SELECT t.digest FROM registry_tag t WHERE t.tenant_id = m.tenant_id AND t.repository = m.repository AND t.tag = ?)";
    const row = await this.#sql.one<ManifestColumns>(
      `SELECT m.digest, m.media_type, b.asset_id, b.size_bytes FROM registry_manifest m
       JOIN registry_blob b ON b.tenant_id = m.tenant_id AND b.digest = m.digest
       WHERE m.tenant_id = ? AND m.repository = ? AND m.digest = ${digest}`,
      [tenantId, repository, reference],
    );
    return row && { digest: row.digest, mediaType: row.media_type, assetId: row.asset_id, sizeBytes: row.size_bytes };
  }

  async hasRepository({ tenantId, repository }: Place): Promise<boolean> {
    const row = await this.#sql.one("SELECT 1 AS found FROM registry_repository WHERE tenant_id = ? AND name = ?", [
      tenantId,
      repository,
    ]);
    return row !== undefined;
  }

  /** What a manifest refers to and the repository does not have. */
  async missing(place: Place, document: ManifestDocument): Promise<Sha256[]> {
    return missingFrom(this.#sql, place, document);
  }

  /**
   * Stores a manifest with its tags, all or nothing: what it refers to is there in the same instant. Throws
   * MANIFEST_BLOB_UNKNOWN.
   */
  async put(options: {
    readonly place: Place;
    readonly document: ManifestDocument;
    readonly blob: StoredBlob;
    readonly tags: readonly string[];
    /** The upload that brought its bytes; empty when they were there. */
    readonly uploadId: string;
    readonly nowMs: number;
  }): Promise<void> {
    const { place, document, blob, tags, uploadId, nowMs } = options;
    const { tenantId, repository } = place;
    await this.#sql.transaction(async (tx) => {
      refuseMissing(place, await missingFrom(tx, place, document));
      await saveBlob(tx, tenantId, blob, nowMs);
      await ensureRepository(tx, place, nowMs);
      await tx.run(
        `INSERT INTO registry_manifest (tenant_id, repository, digest, media_type, artifact_type, subject, annotations, touched_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (tenant_id, repository, digest) DO UPDATE SET touched_at_ms = excluded.touched_at_ms`,
        [
          tenantId,
          repository,
          blob.digest,
          document.mediaType,
          document.artifactType,
          document.subject,
          // Only lists of referrers show them.
          document.subject === "" ? "{}" : JSON.stringify(document.annotations),
          nowMs,
        ],
      );
      for (const digest of [...document.blobs, ...document.manifests]) {
        await tx.run(
          "INSERT INTO registry_reference (tenant_id, repository, manifest_digest, digest) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
          [tenantId, repository, blob.digest, digest],
        );
      }
      for (const tag of tags) await moveTag(tx, place, tag, blob.digest, nowMs);
      if (uploadId !== "") {
        await tx.run("DELETE FROM registry_upload WHERE tenant_id = ? AND upload_id = ?", [tenantId, uploadId]);
      }
    });
  }

  /** Takes a tag off its manifest, which stays. Throws MANIFEST_NOT_FOUND. */
  async deleteTag(place: Place, tag: string, nowMs: number): Promise<void> {
    const { tenantId, repository } = place;
    await this.#sql.transaction(async (tx) => {
      const gone = await tx.query<{ digest: string }>(
        "DELETE FROM registry_tag WHERE tenant_id = ? AND repository = ? AND tag = ? RETURNING digest",
        [tenantId, repository, tag],
      );
      const [row] = gone;
      if (!row) throw manifestNotFound(repository, tag);
      await touchManifest(tx, place, row.digest, nowMs);
    });
  }

  /**
   * Deletes a manifest with the tags that point to it; what only it referred to goes with a later sweep. Throws
   * MANIFEST_NOT_FOUND, and MANIFEST_IN_USE while an index lists it.
   */
  async delete({ tenantId, repository }: Place, digest: Sha256, nowMs: number): Promise<void> {
    const named = [tenantId, repository, digest];
    await this.#sql.transaction(async (tx) => {
      const found = await tx.one(
        "SELECT 1 AS found FROM registry_manifest WHERE tenant_id = ? AND repository = ? AND digest = ?",
        named,
      );
      if (!found) throw manifestNotFound(repository, digest);
      const index = await tx.one<{ manifest_digest: string }>(
        "SELECT manifest_digest FROM registry_reference WHERE tenant_id = ? AND repository = ? AND digest = ? AND manifest_digest <> digest LIMIT 1",
        named,
      );
      if (index) {
        throw new ServiceError("MANIFEST_IN_USE", `the index ${index.manifest_digest} in ${repository} lists it`);
      }
      await dropManifest(tx, { tenantId, repository }, digest, nowMs);
      await expireBlob(tx, tenantId, digest);
    });
  }

  /** Tags after `last`, in the order of their bytes. */
  async tags({ tenantId, repository }: Place, last: string, limit: number): Promise<string[]> {
    const rows = await this.#sql.query<{ tag: string }>(
      "SELECT tag FROM registry_tag WHERE tenant_id = ? AND repository = ? AND tag > ? ORDER BY tag LIMIT ?",
      [tenantId, repository, last, limit],
    );
    return rows.map(({ tag }) => tag);
  }

  /** The tenant's repositories after `last`. */
  async repositories(tenantId: TenantId, last: string, limit: number): Promise<string[]> {
    const rows = await this.#sql.query<{ name: string }>(
      "SELECT name FROM registry_repository WHERE tenant_id = ? AND name > ? ORDER BY name LIMIT ?",
      [tenantId, last, limit],
    );
    return rows.map(({ name }) => name);
  }
}

export function manifestNotFound(repository: string, reference: string): ServiceError {
  return new ServiceError("MANIFEST_NOT_FOUND", `${repository} has no manifest ${reference.slice(0, 128)}`);
}

/**
 * Keeps a manifest and everything below it from release until the deployment has ended; false when it is not there. Part
 * of the transaction that accepts the deployment.
 */
export async function holdImage(
  tx: SqlStatements,
  deploymentId: DeploymentId,
  { tenantId, repository }: Place,
  digest: string,
): Promise<boolean> {
  const found = await tx.one(
    "SELECT 1 AS found FROM registry_manifest WHERE tenant_id = ? AND repository = ? AND digest = ?",
    [tenantId, repository, digest],
  );
  if (!found) return false;
  const held = await tx.run(
    `INSERT INTO registry_hold (deployment_id, tenant_id, digest)
     WITH RECURSIVE below (digest) AS (
       VALUES (CAST(? AS TEXT))
       UNION
       SELECT r.digest FROM registry_reference r JOIN below ON r.manifest_digest = below.digest
       WHERE r.tenant_id = ? AND r.repository = ?
     )
     SELECT ?, ?, digest FROM below LIMIT ?`,
    [digest, tenantId, repository, deploymentId, tenantId, maxHeld + 1],
  );
  if (held.changes > maxHeld) {
    throw new ServiceError("IMAGE_TOO_LARGE", `${repository}@${digest} has more than ${maxHeld} parts below it`);
  }
  return true;
}

/** Removes a manifest's rows; the age of what it referred to begins anew. */
export async function dropManifest(tx: SqlStatements, place: Place, digest: string, nowMs: number): Promise<void> {
  const named = [place.tenantId, place.repository, digest];
  await tx.run("DELETE FROM registry_tag WHERE tenant_id = ? AND repository = ? AND digest = ?", named);
  for (const table of ["registry_link", "registry_manifest"]) {
    await tx.run(
      `UPDATE ${table} SET touched_at_ms = ? WHERE tenant_id = ? AND repository = ? AND digest IN
         (SELECT digest FROM registry_reference WHERE tenant_id = ? AND repository = ? AND manifest_digest = ?)`,
      [nowMs, place.tenantId, place.repository, ...named],
    );
  }
  await tx.run("DELETE FROM registry_manifest WHERE tenant_id = ? AND repository = ? AND digest = ?", named);
}

async function moveTag(tx: SqlStatements, place: Place, tag: string, digest: string, nowMs: number): Promise<void> {
  const { tenantId, repository } = place;
  const before = await tx.one<{ digest: string }>(
    "SELECT digest FROM registry_tag WHERE tenant_id = ? AND repository = ? AND tag = ?",
    [tenantId, repository, tag],
  );
  if (before && before.digest !== digest) await touchManifest(tx, place, before.digest, nowMs);
  await tx.run(
    `INSERT INTO registry_tag (tenant_id, repository, tag, digest) VALUES (?, ?, ?, ?)
     ON CONFLICT (tenant_id, repository, tag) DO UPDATE SET digest = excluded.digest`,
    [tenantId, repository, tag, digest],
  );
}

/** A manifest without a tag ages from when it lost it. */
async function touchManifest(tx: SqlStatements, place: Place, digest: string, nowMs: number): Promise<void> {
  await tx.run("UPDATE registry_manifest SET touched_at_ms = ? WHERE tenant_id = ? AND repository = ? AND digest = ?", [
    nowMs,
    place.tenantId,
    place.repository,
    digest,
  ]);
}

async function missingFrom(sql: SqlStatements, place: Place, document: ManifestDocument): Promise<Sha256[]> {
  return [
    ...(await absent(sql, "registry_link", place, document.blobs)),
    ...(await absent(sql, "registry_manifest", place, document.manifests)),
  ];
}

async function absent(
  sql: SqlStatements,
  table: "registry_link" | "registry_manifest",
  { tenantId, repository }: Place,
  digests: readonly Sha256[],
): Promise<Sha256[]> {
  const present = new Set<string>();
  for (let from = 0; from < digests.length; from += batchSize) {
    const batch = digests.slice(from, from + batchSize);
    const marks = batch.map(() => "?").join(", ");
    const rows = await sql.query<{ digest: string }>(
      `SELECT digest FROM ${table} WHERE tenant_id = ? AND repository = ? AND digest IN (${marks})`,
      [tenantId, repository, ...batch],
    );
    for (const { digest } of rows) present.add(digest);
  }
  return digests.filter((digest) => !present.has(digest));
}

export function refuseMissing({ repository }: Place, missing: readonly Sha256[]): void {
  if (missing.length === 0) return;
  const shown = missing.slice(0, 5).join(", ");
  const more = missing.length > 5 ? ` and ${missing.length - 5} more` : "";
  throw new ServiceError("MANIFEST_BLOB_UNKNOWN", `${repository} does not have ${shown}${more}`);
}
