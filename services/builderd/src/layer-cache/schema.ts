import type { Migration } from "@unkey/sql";

/** A layer has come from `registry`, or with a tenant's upload, which `proof` remembers alone. */
export const migrations: readonly Migration[] = [
  {
    id: 1,
    sql: `
      CREATE TABLE layer (
        digest TEXT NOT NULL,
        diff_id TEXT NOT NULL,
        directory TEXT NOT NULL UNIQUE,
        format INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        last_used_ms INTEGER NOT NULL,
        durable INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (digest, diff_id)
      );
      CREATE INDEX layer_by_use ON layer (last_used_ms);
      CREATE TABLE proof (tenant_id TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (tenant_id, digest));
      CREATE TABLE origin (registry TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (registry, digest));
      CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    `,
  },
  {
    id: 2,
    sql: "ALTER TABLE layer ADD COLUMN content_digest TEXT",
  },
];
