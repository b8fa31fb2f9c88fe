import type { Migration } from "@unkey/sql";

export const migrations: readonly Migration[] = [
  {
    id: 1,
    sql: `
      CREATE TABLE assets (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('available', 'deleting', 'error')),
        digest TEXT NOT NULL,
        size_bytes BIGINT NOT NULL,
        labels TEXT NOT NULL,
        created_at_ms BIGINT NOT NULL,
        last_used_at_ms BIGINT NOT NULL,
        marked_by BIGINT,
        PRIMARY KEY (tenant_id, asset_id)
      );
      CREATE UNIQUE INDEX assets_by_id ON assets (asset_id);
      CREATE UNIQUE INDEX assets_by_declaration ON assets (tenant_id, digest, kind, name, labels) WHERE state = 'available';
      CREATE INDEX assets_by_digest ON assets (digest);

      CREATE TABLE asset_labels (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (tenant_id, asset_id, name),
        FOREIGN KEY (tenant_id, asset_id) REFERENCES assets (tenant_id, asset_id) ON DELETE CASCADE
      );

      CREATE TABLE leases (
        tenant_id TEXT NOT NULL,
        lease_id TEXT NOT NULL,
        lease_key TEXT NOT NULL,
        expires_at_ms BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, lease_id)
      );
      CREATE UNIQUE INDEX leases_by_key ON leases (tenant_id, lease_key);

      CREATE TABLE lease_assets (
        tenant_id TEXT NOT NULL,
        lease_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        PRIMARY KEY (tenant_id, lease_id, asset_id),
        FOREIGN KEY (tenant_id, lease_id) REFERENCES leases (tenant_id, lease_id) ON DELETE CASCADE
      );
      CREATE INDEX lease_assets_by_asset ON lease_assets (asset_id);

      CREATE TABLE collection (id INTEGER PRIMARY KEY CHECK (id = 1), pass BIGINT NOT NULL);
      INSERT INTO collection (id, pass) VALUES (1, 0);
    `,
  },
];
