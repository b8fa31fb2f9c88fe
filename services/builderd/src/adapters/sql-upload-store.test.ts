import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError, newId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { migrations } from "./schema.ts";
import { SqlBuildStore } from "./sql-build-store.ts";
import { SqlUploadStore } from "./sql-upload-store.ts";

const tenantId = newId("tenant");
const upload = (expiresAtMs: number, tenant = tenantId) => ({
  uploadId: newId("upload"),
  tenantId: tenant,
  digest: "",
  sizeBytes: 1,
  expiresAtMs,
});

test("an expired upload is gone, except for a build that has not ended", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const uploads = new SqlUploadStore(sql);
  const builds = new SqlBuildStore(sql);
  const [old, used, young] = [upload(100), upload(100), upload(101)];
  for (const one of [old, used, young]) await uploads.add(one, 8);
  const { build } = await builds.create(
    {
      buildId: newId("build"),
      tenantId,
      idempotencyKey: "k",
      request: { source: { kind: "upload", uploadId: used.uploadId }, plainHttp: false, argvOverride: [] },
      withCredentials: false,
      platform: "linux/amd64",
      nowMs: 1,
    },
    { unfinished: 1, unfinishedPerTenant: 1 },
  );
  assert.deepEqual(await uploads.get(tenantId, used.uploadId, 99), used);
  await assert.rejects(uploads.get(tenantId, used.uploadId, 100), (error) => isServiceError(error, "UPLOAD_NOT_FOUND"));
  assert.deepEqual(await uploads.removeExpired(100), [old.uploadId]);
  assert.deepEqual(await uploads.ids(), new Set([used.uploadId, young.uploadId]));
  await builds.advance(build, "pending", "cancel", {}, 2);
  assert.deepEqual(await uploads.removeExpired(100), [used.uploadId]);
});

test("a tenant holds so many uploads and no more", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const uploads = new SqlUploadStore(sql);
  await uploads.add(upload(1), 2);
  await uploads.add(upload(1), 2);
  await assert.rejects(uploads.add(upload(1), 2), (error) => isServiceError(error, "UPLOAD_LIMIT_REACHED"));
  await uploads.add(upload(1, newId("tenant")), 2);
});
