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
  {
    id: 2,
    sql: `
      CREATE TABLE new_assets (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        version BIGINT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('uploading', 'available', 'deleting', 'error')),
        digest TEXT,
        size_bytes BIGINT NOT NULL,
        received_bytes BIGINT NOT NULL,
        labels TEXT NOT NULL,
        attached_to TEXT NOT NULL,
        keep INTEGER NOT NULL,
        created_at_ms BIGINT NOT NULL,
        last_used_at_ms BIGINT NOT NULL,
        idle_since_ms BIGINT,
        marked_by BIGINT,
        PRIMARY KEY (tenant_id, asset_id)
      );
      INSERT INTO new_assets
        SELECT tenant_id, asset_id, name, kind, ROW_NUMBER() OVER (PARTITION BY tenant_id, kind, name ORDER BY asset_id),
          state, digest, size_bytes, 0, labels, '', 0, created_at_ms, last_used_at_ms,
          CASE WHEN state = 'deleting' THEN 0 WHEN tenant_id = '' THEN NULL ELSE last_used_at_ms END, marked_by
        FROM assets;
      CREATE TABLE new_asset_labels (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (tenant_id, asset_id, name),
        FOREIGN KEY (tenant_id, asset_id) REFERENCES new_assets (tenant_id, asset_id) ON DELETE CASCADE
      );
      INSERT INTO new_asset_labels SELECT * FROM asset_labels;
      DROP TABLE asset_labels;
      DROP TABLE assets;
      ALTER TABLE new_assets RENAME TO assets;
      ALTER TABLE new_asset_labels RENAME TO asset_labels;
      -- Two assets of one declaration may have come to be while one of them was in state error: the younger stays as it is.
      UPDATE assets SET state = 'deleting', idle_since_ms = 0 WHERE state = 'error' AND EXISTS (
        SELECT 1 FROM assets o WHERE o.tenant_id = assets.tenant_id AND o.digest = assets.digest AND o.kind = assets.kind
          AND o.name = assets.name AND o.labels = assets.labels AND o.asset_id > assets.asset_id AND o.state IN ('available', 'error'));
      CREATE INDEX assets_by_digest ON assets (digest) WHERE digest IS NOT NULL;
      CREATE INDEX assets_by_name ON assets (tenant_id, name, asset_id);
      CREATE INDEX assets_by_parent ON assets (attached_to, tenant_id, asset_id) WHERE attached_to <> '';
      CREATE INDEX assets_by_idleness ON assets (idle_since_ms, asset_id) WHERE marked_by IS NULL AND idle_since_ms IS NOT NULL;
      CREATE INDEX assets_by_mark ON assets (asset_id) WHERE marked_by IS NOT NULL;
      CREATE INDEX assets_uploading ON assets (asset_id) WHERE state = 'uploading';
      CREATE INDEX assets_in_error ON assets (asset_id) WHERE state = 'error';

      -- The highest version given to a name, so that no number is given twice.
      CREATE TABLE asset_names (
        tenant_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        versions BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, kind, name)
      );
      INSERT INTO asset_names SELECT tenant_id, kind, name, MAX(version) FROM assets GROUP BY tenant_id, kind, name;

      CREATE TABLE tenant_usage (
        tenant_id TEXT PRIMARY KEY,
        stored_bytes BIGINT NOT NULL,
        asset_count BIGINT NOT NULL
      );
      INSERT INTO tenant_usage SELECT tenant_id, SUM(size_bytes), COUNT(*) FROM assets GROUP BY tenant_id;

      -- Content, shared between tenants: how many assets are made of it, and as what it was last found right.
      CREATE TABLE blobs (
        digest TEXT PRIMARY KEY,
        size_bytes BIGINT NOT NULL,
        refs BIGINT NOT NULL,
        identity TEXT,
        verified_at_ms BIGINT
      );
      INSERT INTO blobs SELECT digest, MAX(size_bytes), COUNT(*), NULL, NULL FROM assets GROUP BY digest;

      -- One row per upload; it outlives the upload for a while, so that its key still names what it became.
      CREATE TABLE uploads (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        upload_key TEXT NOT NULL,
        became_id TEXT,
        touched_at_ms BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, asset_id)
      );
      CREATE UNIQUE INDEX uploads_by_key ON uploads (tenant_id, upload_key) WHERE upload_key <> '';
      CREATE INDEX uploads_by_touch ON uploads (touched_at_ms);

      -- 1 for what an asset asked for is attached to.
      ALTER TABLE lease_assets ADD COLUMN implied INTEGER NOT NULL DEFAULT 0;
      CREATE INDEX leases_by_end ON leases (expires_at_ms);

      CREATE TABLE scrub (id INTEGER PRIMARY KEY CHECK (id = 1), after_digest TEXT NOT NULL, round_started_at_ms BIGINT NOT NULL);
      INSERT INTO scrub (id, after_digest, round_started_at_ms) VALUES (1, '', 0);
    `,
  },
  {
    id: 3,
    sql: `
      -- Keys of sealed blobs: the tenants' under the operator's key, the blobs' under a tenant's.
      CREATE TABLE tenant_keys (tenant_id TEXT PRIMARY KEY, wrapped BLOB NOT NULL);
      CREATE TABLE blob_keys (digest TEXT PRIMARY KEY, tenant_id TEXT NOT NULL, wrapped BLOB NOT NULL);
    `,
  },
  {
    id: 4,
    sql: `
      -- What assets are made of: other assets of their owner.
      CREATE TABLE asset_parts (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        part_id TEXT NOT NULL,
        PRIMARY KEY (asset_id, position),
        FOREIGN KEY (tenant_id, asset_id) REFERENCES assets (tenant_id, asset_id) ON DELETE CASCADE
      ) WITHOUT ROWID;
      CREATE INDEX asset_parts_by_part ON asset_parts (part_id);
      ALTER TABLE uploads ADD COLUMN part_ids TEXT NOT NULL DEFAULT '[]';
    `,
  },
  {
    id: 5,
    sql: `
      -- Fewer trees to change for each asset that comes or goes, and only one of them in the random order of digests: assets name
      -- their content by a number, labels are read from their row, and tables that have a key of their own are sorted by it.
      CREATE TABLE new_blobs (
        blob_id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        size_bytes BIGINT NOT NULL,
        refs BIGINT NOT NULL,
        identity TEXT,
        verified_at_ms BIGINT
      );
      INSERT INTO new_blobs (digest, size_bytes, refs, identity, verified_at_ms)
        SELECT digest, size_bytes, refs, identity, verified_at_ms FROM blobs ORDER BY digest;
      INSERT INTO new_blobs (digest, size_bytes, refs)
        SELECT digest, MAX(size_bytes), 0 FROM assets
        WHERE digest IS NOT NULL AND digest NOT IN (SELECT digest FROM blobs) GROUP BY digest;
      CREATE TABLE new_assets (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        version BIGINT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('uploading', 'available', 'deleting', 'error')),
        blob_id INTEGER,
        size_bytes BIGINT NOT NULL,
        received_bytes BIGINT NOT NULL,
        labels TEXT NOT NULL,
        attached_to TEXT NOT NULL,
        keep INTEGER NOT NULL,
        created_at_ms BIGINT NOT NULL,
        last_used_at_ms BIGINT NOT NULL,
        idle_since_ms BIGINT,
        marked_by BIGINT,
        PRIMARY KEY (tenant_id, asset_id)
      ) WITHOUT ROWID;
      INSERT INTO new_assets
        SELECT tenant_id, asset_id, name, kind, version, state, (SELECT b.blob_id FROM new_blobs b WHERE b.digest = assets.digest),
          size_bytes, received_bytes, labels, attached_to, keep, created_at_ms, last_used_at_ms, idle_since_ms, marked_by
        FROM assets ORDER BY tenant_id, asset_id;
      CREATE TABLE new_asset_parts (
        tenant_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        part_id TEXT NOT NULL,
        PRIMARY KEY (asset_id, position),
        FOREIGN KEY (tenant_id, asset_id) REFERENCES new_assets (tenant_id, asset_id) ON DELETE CASCADE
      ) WITHOUT ROWID;
      INSERT INTO new_asset_parts SELECT * FROM asset_parts;
      DROP TABLE asset_labels;
      DROP TABLE asset_parts;
      DROP TABLE assets;
      DROP TABLE blobs;
      ALTER TABLE new_blobs RENAME TO blobs;
      ALTER TABLE new_assets RENAME TO assets;
      ALTER TABLE new_asset_parts RENAME TO asset_parts;
      CREATE INDEX assets_by_blob ON assets (blob_id) WHERE blob_id IS NOT NULL;
      CREATE INDEX assets_by_name ON assets (tenant_id, name, asset_id);
      CREATE INDEX assets_by_parent ON assets (attached_to, tenant_id, asset_id) WHERE attached_to <> '';
      CREATE INDEX assets_by_idleness ON assets (idle_since_ms, asset_id) WHERE marked_by IS NULL AND idle_since_ms IS NOT NULL;
      CREATE INDEX assets_by_mark ON assets (asset_id) WHERE marked_by IS NOT NULL;
      CREATE INDEX assets_uploading ON assets (asset_id) WHERE state = 'uploading';
      CREATE INDEX assets_in_error ON assets (asset_id) WHERE state = 'error';
      CREATE INDEX asset_parts_by_part ON asset_parts (part_id);
      -- Content whose bytes may go.
      CREATE INDEX blobs_unused ON blobs (blob_id) WHERE refs <= 0;

      CREATE TABLE new_leases (
        tenant_id TEXT NOT NULL,
        lease_id TEXT NOT NULL,
        lease_key TEXT NOT NULL,
        expires_at_ms BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, lease_id)
      ) WITHOUT ROWID;
      INSERT INTO new_leases SELECT tenant_id, lease_id, lease_key, expires_at_ms FROM leases;
      CREATE TABLE new_lease_assets (
        tenant_id TEXT NOT NULL,
        lease_id TEXT NOT NULL,
        asset_id TEXT NOT NULL,
        implied INTEGER NOT NULL,
        PRIMARY KEY (tenant_id, lease_id, asset_id),
        FOREIGN KEY (tenant_id, lease_id) REFERENCES new_leases (tenant_id, lease_id) ON DELETE CASCADE
      ) WITHOUT ROWID;
      INSERT INTO new_lease_assets SELECT tenant_id, lease_id, asset_id, implied FROM lease_assets;
      DROP TABLE lease_assets;
      DROP TABLE leases;
      ALTER TABLE new_leases RENAME TO leases;
      ALTER TABLE new_lease_assets RENAME TO lease_assets;
      CREATE UNIQUE INDEX leases_by_key ON leases (tenant_id, lease_key);
      CREATE INDEX leases_by_end ON leases (expires_at_ms);
      CREATE INDEX lease_assets_by_asset ON lease_assets (asset_id);
    `,
  },
];
