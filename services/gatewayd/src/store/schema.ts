import type { Migration } from "@unkey/sql";

/** Instants are epoch milliseconds, 0 for never. The tenant leads every key that a caller can ask by. */
export const migrations: readonly Migration[] = [
  {
    id: 1,
    sql: `
CREATE TABLE tenant (
  tenant_id TEXT PRIMARY KEY,
  created_at_ms BIGINT NOT NULL
);

CREATE TABLE api_key (
  api_key_id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (tenant_id),
  name TEXT NOT NULL,
  lookup TEXT NOT NULL,
  secret_sha256 BLOB NOT NULL,
  scopes TEXT NOT NULL,
  created_at_ms BIGINT NOT NULL,
  expires_at_ms BIGINT NOT NULL,
  revoked_at_ms BIGINT NOT NULL
);
CREATE INDEX api_key_by_lookup ON api_key (lookup);
CREATE INDEX api_key_by_tenant ON api_key (tenant_id, api_key_id);

CREATE TABLE app (
  app_id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (tenant_id),
  name TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('live', 'deleting', 'deleted')),
  deployment_id TEXT NOT NULL,
  created_at_ms BIGINT NOT NULL,
  deleted_at_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX app_by_live_name ON app (name) WHERE deleted_at_ms = 0;
CREATE INDEX app_by_tenant ON app (tenant_id, name);

CREATE TABLE deployment (
  deployment_id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL REFERENCES tenant (tenant_id),
  app_id TEXT NOT NULL REFERENCES app (app_id),
  state TEXT NOT NULL,
  request BLOB NOT NULL,
  with_credentials INTEGER NOT NULL,
  build_id TEXT NOT NULL,
  image_digest TEXT NOT NULL,
  rootfs_asset_id TEXT NOT NULL,
  process BLOB,
  port INTEGER NOT NULL,
  failure BLOB,
  cancel_requested INTEGER NOT NULL,
  lease_owner TEXT NOT NULL,
  lease_until_ms BIGINT NOT NULL,
  epoch INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  created_at_ms BIGINT NOT NULL,
  ended_at_ms BIGINT NOT NULL
);
CREATE INDEX deployment_by_tenant ON deployment (tenant_id, deployment_id);
CREATE INDEX deployment_by_app ON deployment (app_id, deployment_id);
CREATE INDEX deployment_open ON deployment (app_id, deployment_id) WHERE ended_at_ms = 0;

CREATE TABLE deployment_step (
  deployment_id TEXT NOT NULL REFERENCES deployment (deployment_id),
  position INTEGER NOT NULL,
  kind TEXT NOT NULL,
  state TEXT NOT NULL,
  started_at_ms BIGINT NOT NULL,
  ended_at_ms BIGINT NOT NULL,
  detail TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  PRIMARY KEY (deployment_id, position)
);

CREATE TABLE idempotency (
  tenant_id TEXT NOT NULL,
  idempotency_key TEXT NOT NULL,
  request_sha256 BLOB NOT NULL,
  deployment_id TEXT NOT NULL REFERENCES deployment (deployment_id),
  created_at_ms BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, idempotency_key)
);

CREATE TABLE vm (
  vm_id TEXT PRIMARY KEY,
  tenant_id TEXT NOT NULL,
  app_id TEXT NOT NULL REFERENCES app (app_id),
  deployment_id TEXT NOT NULL REFERENCES deployment (deployment_id),
  ordinal INTEGER NOT NULL,
  host_id TEXT NOT NULL,
  reservation_id TEXT NOT NULL,
  ip_address TEXT NOT NULL,
  wanted TEXT NOT NULL CHECK (wanted IN ('running', 'stopped', 'deleted')),
  settled INTEGER NOT NULL,
  hold_until_ms BIGINT NOT NULL,
  revision INTEGER NOT NULL,
  last_seen BLOB,
  created_at_ms BIGINT NOT NULL
);
CREATE INDEX vm_by_tenant ON vm (tenant_id, vm_id);
CREATE INDEX vm_by_deployment ON vm (deployment_id, ordinal);
CREATE INDEX vm_unsettled ON vm (vm_id) WHERE settled = 0;

CREATE TABLE route_revision (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL);
INSERT INTO route_revision (id, revision) VALUES (1, 1);

CREATE TABLE audit_event (
  seq INTEGER PRIMARY KEY,
  event_id TEXT NOT NULL,
  tenant_id TEXT NOT NULL,
  at_ms BIGINT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT NOT NULL,
  outcome TEXT NOT NULL,
  request_id TEXT NOT NULL,
  hash TEXT NOT NULL
);
CREATE INDEX audit_by_tenant ON audit_event (tenant_id, seq);
`,
  },
  {
    id: 2,
    sql: `
ALTER TABLE deployment ADD COLUMN image_asked TEXT NOT NULL DEFAULT '';

CREATE TABLE registry_repository (
  tenant_id TEXT NOT NULL REFERENCES tenant (tenant_id),
  name TEXT NOT NULL,
  touched_at_ms BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, name)
);

-- Bytes that assetmanagerd holds for a tenant, manifests too. asset_id is empty until they are stored; no statement may
-- release a row before held_until_ms, and one that is being released is no longer there for anybody.
CREATE TABLE registry_blob (
  tenant_id TEXT NOT NULL REFERENCES tenant (tenant_id),
  digest TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('arriving', 'stored', 'releasing')),
  asset_id TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  touched_at_ms BIGINT NOT NULL,
  held_until_ms BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, digest)
);
CREATE INDEX registry_blob_by_age ON registry_blob (state, touched_at_ms);
CREATE INDEX registry_blob_sizes ON registry_blob (tenant_id, size_bytes);

CREATE TABLE registry_link (
  tenant_id TEXT NOT NULL,
  repository TEXT NOT NULL,
  digest TEXT NOT NULL,
  touched_at_ms BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, repository, digest),
  FOREIGN KEY (tenant_id, repository) REFERENCES registry_repository (tenant_id, name),
  FOREIGN KEY (tenant_id, digest) REFERENCES registry_blob (tenant_id, digest)
);
CREATE INDEX registry_link_by_digest ON registry_link (tenant_id, digest);
CREATE INDEX registry_link_by_age ON registry_link (touched_at_ms);

CREATE TABLE registry_manifest (
  tenant_id TEXT NOT NULL,
  repository TEXT NOT NULL,
  digest TEXT NOT NULL,
  media_type TEXT NOT NULL,
  artifact_type TEXT NOT NULL,
  subject TEXT NOT NULL,
  annotations TEXT NOT NULL,
  touched_at_ms BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, repository, digest),
  FOREIGN KEY (tenant_id, repository) REFERENCES registry_repository (tenant_id, name),
  FOREIGN KEY (tenant_id, digest) REFERENCES registry_blob (tenant_id, digest)
);
CREATE INDEX registry_manifest_by_digest ON registry_manifest (tenant_id, digest);
CREATE INDEX registry_manifest_by_age ON registry_manifest (touched_at_ms);
CREATE INDEX registry_referrer ON registry_manifest (tenant_id, repository, subject, digest) WHERE subject <> '';

CREATE TABLE registry_reference (
  tenant_id TEXT NOT NULL,
  repository TEXT NOT NULL,
  manifest_digest TEXT NOT NULL,
  digest TEXT NOT NULL,
  PRIMARY KEY (tenant_id, repository, manifest_digest, digest),
  FOREIGN KEY (tenant_id, repository, manifest_digest)
    REFERENCES registry_manifest (tenant_id, repository, digest) ON DELETE CASCADE
);
CREATE INDEX registry_reference_by_digest ON registry_reference (tenant_id, repository, digest);

CREATE TABLE registry_tag (
  tenant_id TEXT NOT NULL,
  repository TEXT NOT NULL,
  tag TEXT NOT NULL,
  digest TEXT NOT NULL,
  PRIMARY KEY (tenant_id, repository, tag),
  FOREIGN KEY (tenant_id, repository, digest) REFERENCES registry_manifest (tenant_id, repository, digest)
);
CREATE INDEX registry_tag_by_digest ON registry_tag (tenant_id, repository, digest);

CREATE TABLE registry_upload (
  tenant_id TEXT NOT NULL,
  upload_id TEXT NOT NULL,
  repository TEXT NOT NULL,
  asset_id TEXT NOT NULL,
  received_bytes BIGINT NOT NULL,
  touched_at_ms BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, upload_id)
);
CREATE INDEX registry_upload_by_age ON registry_upload (touched_at_ms);

-- What the build of a deployment still reads, whatever is deleted meanwhile.
CREATE TABLE registry_hold (
  deployment_id TEXT NOT NULL REFERENCES deployment (deployment_id),
  tenant_id TEXT NOT NULL,
  digest TEXT NOT NULL,
  PRIMARY KEY (deployment_id, digest)
);
CREATE INDEX registry_hold_by_digest ON registry_hold (tenant_id, digest);
`,
  },
];
