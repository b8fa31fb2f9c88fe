import { type ApiKeyId, ServiceError, type TenantId } from "@unkey/base";
import type { Sql } from "@unkey/sql";
import { type KeyDigest, sameDigest } from "../domain/api-key.ts";

export interface ApiKeyRow {
  readonly apiKeyId: ApiKeyId;
  readonly tenantId: TenantId;
  readonly name: string;
  readonly scopes: readonly string[];
  readonly createdAtMs: number;
  /** 0 for never. */
  readonly expiresAtMs: number;
  /** 0 while it works. */
  readonly revokedAtMs: number;
}

interface Columns {
  api_key_id: ApiKeyId;
  tenant_id: TenantId;
  name: string;
  secret_sha256: Uint8Array;
  scopes: string;
  created_at_ms: number;
  expires_at_ms: number;
  revoked_at_ms: number;
}

const insertKey =
  "INSERT INTO api_key (api_key_id, tenant_id, name, lookup, secret_sha256, scopes, created_at_ms, expires_at_ms, revoked_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)";

/** Tenants and their API keys. A key's secret is never stored, only its digest. */
export class KeyStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** True while nobody can sign in: no key was ever made. */
  async isEmpty(): Promise<boolean> {
    return (await this.#sql.one("SELECT 1 AS found FROM api_key LIMIT 1")) === undefined;
  }

  /** Makes the first tenant with its first key, unless another replica was faster; true when this call did it. */
  async bootstrap(key: ApiKeyRow, digest: KeyDigest): Promise<boolean> {
    return this.#sql.transaction(async (tx) => {
      if ((await tx.one("SELECT 1 AS found FROM api_key LIMIT 1")) !== undefined) return false;
      await tx.run("INSERT INTO tenant (tenant_id, created_at_ms) VALUES (?, ?)", [key.tenantId, key.createdAtMs]);
      await tx.run(insertKey, keyParams(key, digest));
      return true;
    });
  }

  /** Throws TOO_MANY_API_KEYS when the tenant has `maxInForce` keys that work. */
  async insert(key: ApiKeyRow, digest: KeyDigest, maxInForce: number): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      const found = await tx.one<{ count: number }>(
        "SELECT COUNT(*) AS count FROM api_key WHERE tenant_id = ? AND revoked_at_ms = 0 AND (expires_at_ms = 0 OR expires_at_ms > ?)",
        [key.tenantId, key.createdAtMs],
      );
      if ((found?.count ?? 0) >= maxInForce) {
        throw new ServiceError("TOO_MANY_API_KEYS", `the tenant has ${maxInForce} keys that work`);
      }
      await tx.run(insertKey, keyParams(key, digest));
    });
  }

  /** The key that `digest` belongs to, in force or not. */
  async find(digest: KeyDigest): Promise<ApiKeyRow | undefined> {
    const rows = await this.#sql.query<Columns>("SELECT * FROM api_key WHERE lookup = ?", [digest.lookup]);
    const row = rows.find(({ secret_sha256 }) => sameDigest(secret_sha256, digest.sha256));
    return row && toKey(row);
  }

  async get(tenantId: TenantId, apiKeyId: ApiKeyId): Promise<ApiKeyRow | undefined> {
    const row = await this.#sql.one<Columns>("SELECT * FROM api_key WHERE tenant_id = ? AND api_key_id = ?", [
      tenantId,
      apiKeyId,
    ]);
    return row && toKey(row);
  }

  /** Newest first; at most 1000. None that works is left out for one that has ended. */
  async list(tenantId: TenantId, nowMs: number): Promise<ApiKeyRow[]> {
    const rows = await this.#sql.query<Columns>(
      "SELECT * FROM api_key WHERE tenant_id = ? ORDER BY (revoked_at_ms > 0 OR (expires_at_ms > 0 AND expires_at_ms <= ?)), api_key_id DESC LIMIT 1000",
      [tenantId, nowMs],
    );
    return rows.map(toKey).toSorted((a, b) => (a.apiKeyId < b.apiKeyId ? 1 : -1));
  }

  /** Ends a key; an ended one keeps its first end. */
  async revoke(tenantId: TenantId, apiKeyId: ApiKeyId, nowMs: number): Promise<void> {
    await this.#sql.run(
      "UPDATE api_key SET revoked_at_ms = ? WHERE tenant_id = ? AND api_key_id = ? AND revoked_at_ms = 0",
      [nowMs, tenantId, apiKeyId],
    );
  }
}

function keyParams(key: ApiKeyRow, digest: KeyDigest) {
  return [
    key.apiKeyId,
    key.tenantId,
    key.name,
    digest.lookup,
    digest.sha256,
    JSON.stringify(key.scopes),
    key.createdAtMs,
    key.expiresAtMs,
  ];
}

function toKey(row: Columns): ApiKeyRow {
  return {
    apiKeyId: row.api_key_id,
    tenantId: row.tenant_id,
    name: row.name,
    scopes: JSON.parse(row.scopes) as string[],
    createdAtMs: row.created_at_ms,
    expiresAtMs: row.expires_at_ms,
    revokedAtMs: row.revoked_at_ms,
  };
}
