import { createHash } from "node:crypto";

/** Something that was done or denied. */
export interface AuditRecord {
  readonly eventId: string;
  /** Empty when nobody was recognised. */
  readonly tenantId: string;
  readonly atMs: number;
  /** An API key's id, or empty. */
  readonly actor: string;
  readonly action: string;
  readonly target: string;
  /** `ok`, or the reason of the refusal. */
  readonly outcome: string;
  readonly requestId: string;
}

export interface ChainedRecord extends AuditRecord {
  /** sha256 over the predecessor's hash and this record, hex. */
  readonly hash: string;
}

export const chainStart = "0".repeat(64);

/** The record's link: it covers the predecessor's, so no row can be changed, removed or moved without breaking the rest. */
export function chainHash(previousHash: string, record: AuditRecord): string {
  const { eventId, tenantId, atMs, actor, action, target, outcome, requestId } = record;
  const content = JSON.stringify([previousHash, eventId, tenantId, atMs, actor, action, target, outcome, requestId]);
  return createHash("sha256").update(content).digest("hex");
}

/** The event id of the first record whose hash does not follow from its predecessor's, or undefined when all hold. */
export function brokenLink(previousHash: string, records: readonly ChainedRecord[]): string | undefined {
  let previous = previousHash;
  for (const record of records) {
    if (chainHash(previous, record) !== record.hash) return record.eventId;
    previous = record.hash;
  }
  return undefined;
}
