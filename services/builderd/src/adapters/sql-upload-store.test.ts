import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError, newId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { migrations } from "./schema.ts";
import { SqlBuildStore } from "./sql-build-store.ts";
import { mustHoldUpload, SqlUploadStore } from "./sql-upload-store.ts";

const tenantId = newId("tenant");
const upload = (expiresAtMs: number, tenant = tenantId) => ({
  uploadId: newId("upload"),
  tenantId: tenant,
  name: "",
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
      request: {
        source: { kind: "upload", uploadId: used.uploadId },
        plainHttp: false,
        format: "erofs",
        argvOverride: [],
      },
      withCredentials: false,
      platform: "linux/amd64",
      nowMs: 1,
    },
    { unfinished: 1, unfinishedPerTenant: 1 },
  );
  await mustHoldUpload(sql, tenantId, used.uploadId, 99);
  const notFound = (error: unknown) => isServiceError(error, "UPLOAD_NOT_FOUND");
  await assert.rejects(mustHoldUpload(sql, tenantId, used.uploadId, 100), notFound);
  await assert.rejects(mustHoldUpload(sql, newId("tenant"), used.uploadId, 99), notFound);
  assert.deepEqual(await uploads.removeSpent(100), [old.uploadId]);
  assert.deepEqual(await uploads.ids(), new Set([used.uploadId, young.uploadId]));
  await builds.advance(build, "pending", "cancel", {}, 2);
  assert.deepEqual(await uploads.removeSpent(99), [used.uploadId], "what was built from is spent before it expires");
});

test("a tenant holds so many uploads and no more", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const uploads = new SqlUploadStore(sql);
  await uploads.add(upload(1), 2);
  await uploads.add(upload(1), 2);
  await assert.rejects(uploads.add(upload(1), 2), (error) => isServiceError(error, "UPLOAD_LIMIT_REACHED"));
  await uploads.add(upload(1, newId("tenant")), 2);
});
