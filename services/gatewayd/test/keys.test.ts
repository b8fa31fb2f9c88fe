import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { isServiceError, newId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { newKey } from "../src/service/keys.ts";
import { KeyStore } from "../src/store/key-store.ts";
import { migrations } from "../src/store/schema.ts";

test("keys that work are counted, and none of them is hidden behind those that ended", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const store = new KeyStore(sql);
  const tenantId = newId("tenant");
  await sql.run("INSERT INTO tenant (tenant_id, created_at_ms) VALUES (?, 1)", [tenantId]);
  const add = async (nowMs: number, expiresAtMs: number) => {
    const { key, digest } = newKey({ tenantId, name: "k", scopes: ["*"], expiresAtMs, nowMs }, randomBytes);
    await store.insert(key, digest, 2);
    return key.apiKeyId;
  };
  const kept = await add(1000, 0);
  for (let i = 0; i < 1001; i++) {
    const apiKeyId = await add(2000 + i, i % 2 === 0 ? 2001 + i : 0);
    if (i % 2 === 1) await store.revoke(tenantId, apiKeyId, 2000 + i);
  }
  const second = await add(9000, 0);
  await assert.rejects(add(9001, 0), (error) => isServiceError(error, "TOO_MANY_API_KEYS"));
  const ids = (await store.list(tenantId, 9001)).map(({ apiKeyId }) => apiKeyId);
  assert.equal(ids.length, 1000);
  assert.equal(ids[0], second);
  assert.ok(ids.includes(kept));
});
