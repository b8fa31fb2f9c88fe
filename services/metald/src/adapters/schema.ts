import type { Migration } from "@unkey/sql";

/** metald's own database, one per host. */
export const migrations: readonly Migration[] = [
  {
    id: 1,
    sql: `
CREATE TABLE host_fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE vm (
  vm_id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  app_id TEXT NOT NULL,
  deployment_id TEXT NOT NULL,
  spec_hash TEXT NOT NULL,
  spec BLOB NOT NULL,
  vcpu_count INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  disk_bytes INTEGER NOT NULL,
  rootfs_asset_id TEXT NOT NULL,
  slot INTEGER UNIQUE,
  state TEXT NOT NULL,
  incarnation INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  exit TEXT,
  failure TEXT,
  created_at_ms INTEGER NOT NULL,
  started_at_ms INTEGER NOT NULL,
  ended_at_ms INTEGER NOT NULL,
  record TEXT,
  lease_id TEXT,
  operation TEXT
) STRICT;
CREATE INDEX vm_by_tenant ON vm (tenant_id, created_at_ms, vm_id);
CREATE INDEX vm_alive ON vm (state) WHERE state <> 'deleted';

-- Room held for VMs that are about to be created; a row counts until it expires.
CREATE TABLE reservation (
  reservation_id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  vcpu_count INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  disk_bytes INTEGER NOT NULL,
  expires_at_ms INTEGER NOT NULL
) STRICT;

-- When each slot that no VM has was given back: its address rests for a while.
CREATE TABLE released_slot (slot INTEGER PRIMARY KEY, released_at_ms INTEGER NOT NULL) STRICT;

-- Incarnations whose begin or end billaged has not confirmed yet; the row goes when both are.
CREATE TABLE series (
  tenant_id TEXT NOT NULL,
  vm_id TEXT NOT NULL,
  incarnation INTEGER NOT NULL,
  app_id TEXT NOT NULL,
  deployment_id TEXT NOT NULL,
  baseline TEXT NOT NULL,
  final TEXT,
  start_confirmed INTEGER NOT NULL,
  PRIMARY KEY (vm_id, incarnation)
) STRICT, WITHOUT ROWID;
`,
  },
  {
    id: 2,
    sql: `
-- JSON of what was placed as the VM's root filesystem: digests of the image and of its parts.
ALTER TABLE vm ADD COLUMN staged_rootfs TEXT;
`,
  },
];
