import type { Migration } from "@unkey/sql";

export const migrations: readonly Migration[] = [
  {
    id: 1,
    sql: `
      CREATE TABLE build (
        tenant_id TEXT NOT NULL,
        build_id TEXT NOT NULL UNIQUE,
        idempotency_key TEXT NOT NULL,
        source_kind TEXT NOT NULL CHECK (source_kind IN ('reference', 'upload')),
        source TEXT NOT NULL,
        plain_http INTEGER NOT NULL,
        argv_override TEXT NOT NULL,
        with_credentials INTEGER NOT NULL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        platform TEXT NOT NULL,
        image_digest TEXT NOT NULL DEFAULT '',
        cache_hit INTEGER NOT NULL DEFAULT 0,
        rootfs_asset_id TEXT NOT NULL DEFAULT '',
        rootfs_bytes INTEGER NOT NULL DEFAULT 0,
        process TEXT,
        failure TEXT,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant_id, build_id),
        UNIQUE (tenant_id, idempotency_key)
      );
      CREATE INDEX build_unfinished ON build (build_id)
        WHERE state NOT IN ('completed', 'failed', 'cancelled');
      CREATE TABLE build_step (
        build_id TEXT NOT NULL,
        ordinal INTEGER NOT NULL,
        state TEXT NOT NULL,
        started_at_ms INTEGER NOT NULL,
        ended_at_ms INTEGER NOT NULL,
        bytes_done INTEGER NOT NULL,
        bytes_total INTEGER NOT NULL,
        PRIMARY KEY (build_id, ordinal)
      );
      CREATE TABLE build_log (
        build_id TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (build_id, sequence)
      );
      CREATE TABLE rootfs (
        tenant_id TEXT NOT NULL,
        rootfs_key TEXT NOT NULL,
        image_digest TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        rootfs_bytes INTEGER NOT NULL,
        process TEXT NOT NULL,
        PRIMARY KEY (tenant_id, rootfs_key)
      );
      CREATE TABLE upload (
        tenant_id TEXT NOT NULL,
        upload_id TEXT NOT NULL UNIQUE,
        digest TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant_id, upload_id)
      );
    `,
  },
  { id: 2, sql: "CREATE INDEX build_by_upload ON build (source) WHERE source_kind = 'upload';" },
];
