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
  {
    id: 3,
    // SQLite cannot change a CHECK: the table is made again. Earlier results were made under no policy.
    sql: `
      CREATE TABLE build_3 (
        tenant_id TEXT NOT NULL,
        build_id TEXT NOT NULL UNIQUE,
        idempotency_key TEXT NOT NULL,
        source_kind TEXT NOT NULL CHECK (source_kind IN ('reference', 'upload', 'pushed')),
        source TEXT NOT NULL,
        image_name TEXT NOT NULL,
        plain_http INTEGER NOT NULL,
        format TEXT NOT NULL CHECK (format IN ('erofs', 'ext4')),
        argv_override TEXT NOT NULL,
        with_credentials INTEGER NOT NULL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        platform TEXT NOT NULL,
        image_digest TEXT NOT NULL DEFAULT '',
        policy_digest TEXT NOT NULL DEFAULT '',
        cache_hit INTEGER NOT NULL DEFAULT 0,
        rootfs_asset_id TEXT NOT NULL DEFAULT '',
        rootfs_bytes INTEGER NOT NULL DEFAULT 0,
        provenance_asset_id TEXT NOT NULL DEFAULT '',
        sbom_asset_id TEXT NOT NULL DEFAULT '',
        process TEXT,
        failure TEXT,
        created_at_ms INTEGER NOT NULL,
        alive_at_ms INTEGER NOT NULL DEFAULT 0,
        ended_at_ms INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (tenant_id, build_id),
        UNIQUE (tenant_id, idempotency_key)
      );
      INSERT INTO build_3 (tenant_id, build_id, idempotency_key, source_kind, source, image_name, plain_http, format,
          argv_override, with_credentials, state, attempts, platform, image_digest, cache_hit, rootfs_asset_id,
          rootfs_bytes, process, failure, created_at_ms, ended_at_ms)
        SELECT tenant_id, build_id, idempotency_key, source_kind, source, source, plain_http, 'erofs',
          argv_override, with_credentials, state, attempts, platform, image_digest, cache_hit, rootfs_asset_id,
          rootfs_bytes, process, failure, created_at_ms,
          CASE WHEN state IN ('completed', 'failed', 'cancelled')
            THEN (SELECT max(ended_at_ms) FROM build_step WHERE build_step.build_id = build.build_id) ELSE 0 END
        FROM build;
      DROP TABLE build;
      ALTER TABLE build_3 RENAME TO build;
      CREATE INDEX build_unfinished ON build (build_id) WHERE state NOT IN ('completed', 'failed', 'cancelled');
      CREATE INDEX build_by_upload ON build (source) WHERE source_kind = 'upload';
      CREATE INDEX build_by_creation ON build (tenant_id, created_at_ms);
      CREATE INDEX build_by_end ON build (tenant_id, ended_at_ms);
      CREATE TABLE build_fetch (
        tenant_id TEXT NOT NULL,
        build_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (build_id, attempt)
      );
      CREATE INDEX build_fetch_by_day ON build_fetch (tenant_id, at_ms);
      DROP TABLE rootfs;
      CREATE TABLE rootfs (
        tenant_id TEXT NOT NULL,
        rootfs_key TEXT NOT NULL,
        image_digest TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        rootfs_bytes INTEGER NOT NULL,
        provenance_asset_id TEXT NOT NULL,
        sbom_asset_id TEXT NOT NULL,
        process TEXT NOT NULL,
        used_at_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant_id, rootfs_key)
      );
      CREATE INDEX rootfs_by_asset ON rootfs (tenant_id, asset_id);
      ALTER TABLE upload ADD COLUMN name TEXT NOT NULL DEFAULT '';
    `,
  },
];
