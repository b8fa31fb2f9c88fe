import assert from "node:assert/strict";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isServiceError, newId, systemClock } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { openSqlite } from "@unkey/sql";
import { migrations } from "./adapters/schema.ts";
import { SqlUploadStore } from "./adapters/sql-upload-store.ts";
import { UploadService } from "./upload-service.ts";

test("silent uploads are given up, and only so many run at once", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "uploads-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const service = new UploadService({
    store: new SqlUploadStore(sql),
    directory,
    maxBytes: 1 << 20,
    lifetimeMs: 60_000,
    silenceMs: 200,
    clock: systemClock,
    log: createLogger({ write: () => undefined }),
  });
  async function* silent(): AsyncGenerator<Uint8Array> {
    yield Buffer.alloc(10);
    await new Promise(() => {});
  }
  const uploads = Array.from({ length: 9 }, () =>
    service.receive({ tenantId: newId("tenant"), name: "", expectedDigest: "" }, silent()),
  );
  const results = await Promise.allSettled(uploads);
  const reasons = results.map((result) =>
    result.status === "rejected" && isServiceError(result.reason) ? result.reason.reason : "",
  );
  assert.deepEqual(reasons, [...Array.from({ length: 8 }, () => "DEADLINE_EXCEEDED"), "UPLOAD_LIMIT_REACHED"]);
  assert.deepEqual(await readdir(directory), []);
});

test("one tenant's uploads leave places to the others", async (context) => {
  const directory = await mkdtemp(join(tmpdir(), "uploads-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const service = new UploadService({
    store: new SqlUploadStore(sql),
    directory,
    maxBytes: 1 << 20,
    lifetimeMs: 60_000,
    clock: systemClock,
    log: createLogger({ write: () => undefined }),
  });
  const end = Promise.withResolvers<void>();
  async function* slow(): AsyncGenerator<Uint8Array> {
    yield Buffer.alloc(10);
    await end.promise;
  }
  const [greedy, other] = [newId("tenant"), newId("tenant")];
  const reasonOf = (upload: Promise<unknown>) =>
    upload.then(
      () => "",
      (error: unknown) => (isServiceError(error) ? error.reason : String(error)),
    );
  const held = Array.from({ length: 4 }, () =>
    reasonOf(service.receive({ tenantId: greedy, name: "", expectedDigest: "" }, slow())),
  );
  assert.equal(
    await reasonOf(service.receive({ tenantId: greedy, name: "", expectedDigest: "" }, slow())),
    "UPLOAD_LIMIT_REACHED",
  );
  const others = reasonOf(service.receive({ tenantId: other, name: "", expectedDigest: "" }, slow()));
  end.resolve();
  assert.deepEqual(
    await Promise.all([...held, others]),
    Array.from({ length: 5 }, () => "IMAGE_ARCHIVE_INVALID"),
  );
});
