import assert from "node:assert/strict";
import { test } from "node:test";
import { brokenLink, type ChainedRecord, chainHash, chainStart } from "./audit-chain.ts";

function chain(count: number): ChainedRecord[] {
  const records: ChainedRecord[] = [];
  let hash = chainStart;
  for (let i = 0; i < count; i++) {
    const record = {
      eventId: `evt_${i}`,
      tenantId: "tenant_1",
      atMs: i,
      actor: "key_1",
      action: "DeleteApp",
      target: `app-${i}`,
      outcome: "ok",
      requestId: `req_${i}`,
    };
    hash = chainHash(hash, record);
    records.push({ ...record, hash });
  }
  return records;
}

test("an untouched chain holds from any of its links on", () => {
  const records = chain(5);
  assert.equal(brokenLink(chainStart, records), undefined);
  assert.equal(brokenLink(records[1]!.hash, records.slice(2)), undefined);
});

test("a record that was changed, removed, moved or put in breaks the chain", () => {
  const records = chain(5);
  const changed = records.map((record, i) => (i === 2 ? { ...record, outcome: "SCOPE_MISSING" } : record));
  assert.equal(brokenLink(chainStart, changed), "evt_2");
  assert.equal(brokenLink(chainStart, records.toSpliced(2, 1)), "evt_3");
  assert.equal(brokenLink(chainStart, [records[0]!, records[2]!, records[1]!, ...records.slice(3)]), "evt_2");
  assert.equal(brokenLink(chainStart, records.toSpliced(2, 0, records[4]!)), "evt_4");
  assert.equal(brokenLink(chainStart, records.slice(1)), "evt_1");
});
