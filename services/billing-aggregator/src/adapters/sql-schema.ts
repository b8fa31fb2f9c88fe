import type { Migration } from "@unkey/sql";

export const migrations: readonly Migration[] = [
  {
    id: 1,
    sql: `
-- Every batch as it was received. seq is the order of taking and is never used twice.
CREATE TABLE inbox (
  seq BIGINT PRIMARY KEY,
  batch_id TEXT NOT NULL UNIQUE,
  sha256 BLOB NOT NULL,
  host_id TEXT NOT NULL,
  minute_at_ms BIGINT NOT NULL,
  received_at_ms BIGINT NOT NULL,
  body_bytes BIGINT NOT NULL,
  body_zstd BLOB NOT NULL,
  set_aside TEXT NOT NULL -- JSON: [{"index", "why"}] of the windows that are not billed
);

-- Batches that could not be taken; under what they claim and what they are, since a claim may be somebody else's id.
CREATE TABLE quarantined_batch (
  batch_id TEXT NOT NULL,
  sha256 BLOB NOT NULL,
  received_at_ms BIGINT NOT NULL,
  why TEXT NOT NULL,
  body_bytes BIGINT NOT NULL,
  body_zstd BLOB NOT NULL,
  PRIMARY KEY (batch_id, sha256)
);

-- The latest window taken of each series.
CREATE TABLE series_head (
  tenant_id TEXT NOT NULL,
  app_id TEXT NOT NULL,
  vm_id TEXT NOT NULL,
  incarnation BIGINT NOT NULL,
  host_id TEXT NOT NULL,
  start_ms BIGINT NOT NULL,
  covered_to_ms BIGINT NOT NULL,
  log_epoch TEXT NOT NULL, -- unsigned 64 bits
  revision BIGINT NOT NULL,
  hash TEXT NOT NULL,
  closing TEXT NOT NULL,
  final INTEGER NOT NULL,
  PRIMARY KEY (host_id, vm_id, incarnation)
);
CREATE INDEX series_head_by_tenant ON series_head (tenant_id, final, app_id, vm_id);

-- The latest minute that a host's batches reached.
CREATE TABLE host_progress (
  host_id TEXT PRIMARY KEY,
  minute_at_ms BIGINT NOT NULL,
  received_at_ms BIGINT NOT NULL
);

CREATE TABLE price_book (
  price_book_id TEXT PRIMARY KEY,
  currency TEXT NOT NULL,
  exponent INTEGER NOT NULL,
  effective_from_ms BIGINT NOT NULL UNIQUE,
  prices TEXT NOT NULL, -- JSON: [{"meter", "amount", "perQuantity"}]
  hash TEXT NOT NULL
);

-- One row: the last seq given out, what the inbox weighs, and how far which store was projected into.
CREATE TABLE pipeline (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  last_seq BIGINT NOT NULL,
  inbox_bytes BIGINT NOT NULL,
  store_id TEXT NOT NULL,
  projected_seq BIGINT NOT NULL
);
INSERT INTO pipeline (id, last_seq, inbox_bytes, store_id, projected_seq) VALUES (1, 0, 0, '', 0);
`,
  },
];
