import assert from "node:assert/strict";
import { access, mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { type Build, BuildState } from "@unkey/api/builder";
import { isServiceError, newId, type TenantId } from "@unkey/base";
import { assembleImage, digestOf } from "@unkey/oci";
import type { ImageWorkers } from "../src/worker/image-workers.ts";
import { type Builder, build, fromUpload, startBuilder, statesOf, temporary, upload } from "./harness.ts";

const tenantId = newId("tenant");
const facts = {
  passwd: "",
  group: "",
  droppedXattrs: [],
  packages: { packages: [], unread: [], unreadOmitted: 0 },
};

/** Workers that unpack nothing, and assemble only when they are let; it tells how many are at it. */
function gatedWorkers() {
  const open = Promise.withResolvers<void>();
  const state = { entered: 0, most: 0, inside: 0 };
  const waiters: (() => void)[] = [];
  const workers: ImageWorkers = {
    unpackLayer: async ({ chunks, directory }) => {
      for await (const _ of chunks);
      await mkdir(directory);
      for (const name of ["index", "content", "tails"]) await writeFile(join(directory, name), "");
      return directory;
    },
    startAssembler: async ({ directory, signal, onBytes }) => ({
      add: () => undefined,
      write: async () => {
        state.entered++;
        state.inside++;
        state.most = Math.max(state.most, state.inside);
        for (const wake of waiters.splice(0)) wake();
        onBytes(10, 100);
        try {
          const aborted = Promise.withResolvers<never>();
          signal.addEventListener("abort", () => aborted.reject(signal.reason), { once: true });
          signal.throwIfAborted();
          await Promise.race([open.promise, aborted.promise]);
          const imagePath = join(directory, "image");
          await writeFile(imagePath, "image");
          return { ...facts, imagePath, sizeBytes: 5, digest: digestOf(Buffer.from("image")) };
        } finally {
          state.inside--;
        }
      },
      [Symbol.asyncDispose]: async () => {},
    }),
  };
  return {
    state,
    open: () => open.resolve(),
    /** Resolves when `count` have entered. */
    async entered(count: number): Promise<void> {
      while (state.entered < count) await new Promise<void>((resolve) => waiters.push(resolve));
    },
    workers,
  };
}

/** Uploads images of different content, so that none is found in the cache. */
async function images(
  context: TestContext,
  builder: Builder,
  count: number,
  owner: TenantId = tenantId,
): Promise<string[]> {
  const directory = await temporary(context);
  const ids: string[] = [];
  for (let at = 0; at < count; at++) {
    const layout = join(directory, String(at));
    await assembleImage({ directory: layout, files: [{ path: "f", content: `${at}` }], config: { Cmd: ["/f"] } });
    ids.push((await upload(builder, owner, layout)).uploadId);
  }
  return ids;
}

async function start(builder: Builder, uploadId: string, owner: TenantId = tenantId): Promise<string> {
  const { buildId } = await builder
    .as(owner)
    .buildImage({ tenantId: owner, idempotencyKey: newId("op"), ...fromUpload(uploadId) });
  return buildId;
}

async function ended(builder: Builder, buildId: string): Promise<Build> {
  let last: Build | undefined;
  for await (last of builder.as(tenantId).watchBuild({ tenantId, buildId }));
  assert.ok(last);
  return last;
}

test("as many builds run at once as are allowed, in the order in which they were asked for", async (context) => {
  const writer = gatedWorkers();
  const builder = await startBuilder(context, { concurrency: 3, workers: writer.workers });
  const ids = [];
  for (const uploadId of await images(context, builder, 4)) ids.push(await start(builder, uploadId));
  await writer.entered(2);
  const { builds } = await builder.as(tenantId).listBuilds({ tenantId });
  assert.deepEqual(
    builds.map(({ buildId }) => buildId),
    ids.toReversed(),
  );
  assert.deepEqual(
    builds.map(({ state }) => state),
    [BuildState.PENDING, BuildState.PENDING, BuildState.WRITING, BuildState.WRITING],
  );
  writer.open();
  for (const id of ids) assert.equal((await ended(builder, id)).state, BuildState.COMPLETED);
  assert.equal(writer.state.most, 2);
});

test("those who watch see every state and how far it is", async (context) => {
  const writer = gatedWorkers();
  const builder = await startBuilder(context, { workers: writer.workers });
  const [uploadId = ""] = await images(context, builder, 1);
  const buildId = await start(builder, uploadId);
  await writer.entered(1);
  const seen: Build[] = [];
  for await (const now of builder.as(tenantId).watchBuild({ tenantId, buildId })) {
    seen.push(now);
    writer.open();
  }
  assert.equal(seen[0]?.state, BuildState.WRITING);
  const step = seen[0]?.steps.at(-1);
  assert.deepEqual([step?.bytesDone, step?.bytesTotal, step?.endedAtMs], [10n, 100n, 0n]);
  assert.equal(seen.at(-1)?.state, BuildState.COMPLETED);
  assert.equal(seen.at(-1)?.steps[3]?.bytesDone, 10n, "the last count is kept");
});

test("a running build is cancelled and leaves nothing; cancelling again changes nothing", async (context) => {
  const writer = gatedWorkers();
  const builder = await startBuilder(context, { workers: writer.workers });
  const [uploadId = "", nextId = ""] = await images(context, builder, 2);
  const buildId = await start(builder, uploadId);
  await writer.entered(1);
  const client = builder.as(tenantId);
  const cancelled = await client.cancelBuild({ tenantId, buildId });
  assert.equal(cancelled.state, BuildState.CANCELLED);
  assert.equal(writer.state.inside, 0, "the work has ended when the call answers");
  assert.deepEqual(await builder.scratch(), []);
  assert.equal((await client.cancelBuild({ tenantId, buildId })).state, BuildState.CANCELLED);
  assert.equal(builder.assets.stored.length, 0);
  assert.deepEqual(await readdir(join(builder.directory, "uploads")), [nextId]);
  writer.open();
  assert.equal(
    (await build(builder, tenantId, fromUpload(nextId))).state,
    BuildState.COMPLETED,
    "the next has its turn",
  );
});

test("a build that waits is cancelled before it begins", async (context) => {
  const writer = gatedWorkers();
  const builder = await startBuilder(context, { concurrency: 1, workers: writer.workers });
  const [first = "", second = ""] = await images(context, builder, 2);
  const running = await start(builder, first);
  const waiting = await start(builder, second);
  await writer.entered(1);
  const cancelled = await builder.as(tenantId).cancelBuild({ tenantId, buildId: waiting });
  assert.deepEqual(statesOf(cancelled), ["PENDING", "CANCELLED"]);
  writer.open();
  assert.equal((await ended(builder, running)).state, BuildState.COMPLETED);
  assert.equal(writer.state.entered, 1);
});

test("a build that waits for another of the same image is cancelled at once", async (context) => {
  const writer = gatedWorkers();
  const builder = await startBuilder(context, { concurrency: 3, workers: writer.workers });
  const [uploadId = ""] = await images(context, builder, 1);
  await start(builder, uploadId);
  await writer.entered(1);
  const second = await start(builder, uploadId);
  const client = builder.as(tenantId);
  for await (const now of client.watchBuild({ tenantId, buildId: second })) if (now.imageDigest !== "") break;
  assert.equal((await client.cancelBuild({ tenantId, buildId: second })).state, BuildState.CANCELLED);
  writer.open();
});

test("a build over its time fails and says so", async (context) => {
  const builder = await startBuilder(context, { buildTimeoutMs: 300, workers: gatedWorkers().workers });
  const [uploadId = ""] = await images(context, builder, 1);
  const result = await build(builder, tenantId, fromUpload(uploadId));
  assert.equal(result.failure?.reason, "BUILD_TIMED_OUT");
  assert.deepEqual(await builder.scratch(), []);
});

test("an error that nobody foresaw tells the caller nothing of the inside", async (context) => {
  const builder = await startBuilder(context, {
    workers: {
      ...gatedWorkers().workers,
      startAssembler: async () => {
        throw new TypeError("/secret/path is undefined");
      },
    },
  });
  const [uploadId = ""] = await images(context, builder, 1);
  const result = await build(builder, tenantId, fromUpload(uploadId));
  assert.equal(result.failure?.reason, "INTERNAL");
  assert.doesNotMatch(result.failure?.message ?? "", /secret/);
  assert.ok(
    builder.lines.some((line) => line.includes("/secret/path")),
    "the log has it",
  );
});

test("a tenant, and the builder, take only so many builds that have not ended", async (context) => {
  const writer = gatedWorkers();
  const builder = await startBuilder(context, {
    workers: writer.workers,
    limits: { unfinished: 3, unfinishedPerTenant: 2 },
  });
  const ids = await images(context, builder, 3);
  const other = newId("tenant");
  const [othersFirst = "", othersSecond = ""] = await images(context, builder, 2, other);
  await start(builder, ids[0] ?? "");
  await start(builder, ids[1] ?? "");
  const full = (error: unknown): boolean => isServiceError(error, "BUILD_QUEUE_FULL");
  await assert.rejects(start(builder, ids[2] ?? ""), full);
  await start(builder, othersFirst, other);
  await assert.rejects(start(builder, othersSecond, other), full);
  writer.open();
});

test("what is one tenant's is not there for another", async (context) => {
  const builder = await startBuilder(context, { workers: gatedWorkers().workers });
  const [uploadId = ""] = await images(context, builder, 1);
  const buildId = await start(builder, uploadId);
  const stranger = newId("tenant");
  const client = builder.as(stranger);
  const notFound = (error: unknown): boolean => isServiceError(error, "BUILD_NOT_FOUND");
  await assert.rejects(client.getBuild({ tenantId: stranger, buildId }), notFound);
  await assert.rejects(client.cancelBuild({ tenantId: stranger, buildId }), notFound);
  await assert.rejects(async () => {
    for await (const _ of client.watchBuild({ tenantId: stranger, buildId }));
  }, notFound);
  await assert.rejects(async () => {
    for await (const _ of client.streamBuildLogs({ tenantId: stranger, buildId }));
  }, notFound);
  await assert.rejects(client.getBuild({ tenantId, buildId }), (error) => isServiceError(error, "TENANT_MISMATCH"));
});

test("builds are listed in pages, newest first", async (context) => {
  const writer = gatedWorkers();
  const builder = await startBuilder(context, { workers: writer.workers });
  writer.open();
  const ids = [];
  for (const uploadId of await images(context, builder, 5)) {
    ids.unshift((await build(builder, tenantId, fromUpload(uploadId))).buildId);
  }
  const client = builder.as(tenantId);
  const found = [];
  for (let pageToken = ""; ; ) {
    const page = await client.listBuilds({ tenantId, pageSize: 2, pageToken });
    found.push(...page.builds.map(({ buildId }) => buildId));
    pageToken = page.nextPageToken;
    if (pageToken === "") break;
  }
  assert.deepEqual(found, ids);
});

test("stopping leaves a running build to the next start, which builds it from the beginning", async (context) => {
  const first = gatedWorkers();
  const builder = await startBuilder(context, { workers: first.workers });
  const [uploadId = ""] = await images(context, builder, 1);
  const buildId = await start(builder, uploadId);
  await first.entered(1);
  const watching = ended(builder, buildId);
  await Promise.all([assert.rejects(watching, (error) => isServiceError(error, "SHUTTING_DOWN")), builder.close()]);
  await mkdir(join(builder.directory, "scratch", "left-by-a-crash"), { recursive: true });
  await mkdir(join(builder.directory, "uploads", newId("upload")));

  const second = gatedWorkers();
  second.open();
  const next = await startBuilder(context, { directory: builder.directory, workers: second.workers });
  const result = await ended(next, buildId);
  assert.equal(result.state, BuildState.COMPLETED);
  assert.deepEqual(statesOf(result), [
    "PENDING",
    "PULLING",
    "EXTRACTING",
    "WRITING",
    "PENDING",
    "PULLING",
    "EXTRACTING",
    "WRITING",
    "REGISTERING",
    "COMPLETED",
  ]);
  assert.deepEqual(await next.scratch(), []);
  await next.close(); // waits for the sweep
  assert.deepEqual(await readdir(join(builder.directory, "uploads")), []);
});

test("an upload is gone when its build has ended; the build's key answers as before", async (context) => {
  const writer = gatedWorkers();
  writer.open();
  const builder = await startBuilder(context, { workers: writer.workers });
  const [uploadId = "", kept = ""] = await images(context, builder, 2);
  const request = { tenantId, idempotencyKey: "once", ...fromUpload(uploadId) };
  const { buildId } = await builder.as(tenantId).buildImage(request);
  assert.equal((await ended(builder, buildId)).state, BuildState.COMPLETED);
  await builder.close(); // waits for the end of the build's work
  assert.deepEqual(await readdir(join(builder.directory, "uploads")), [kept]);
  const next = await startBuilder(context, { directory: builder.directory });
  assert.equal((await next.as(tenantId).buildImage(request)).buildId, buildId);
  await assert.rejects(start(next, uploadId), (error) => isServiceError(error, "UPLOAD_NOT_FOUND"));
});

test("an upload expires, with its files", async (context) => {
  const builder = await startBuilder(context, { uploadLifetimeMs: 1, workers: gatedWorkers().workers });
  const [uploadId = ""] = await images(context, builder, 1);
  await assert.rejects(start(builder, uploadId), (error) => isServiceError(error, "UPLOAD_NOT_FOUND"));
  await builder.close();
  const next = await startBuilder(context, { directory: builder.directory });
  await next.close();
  await assert.rejects(access(join(builder.directory, "uploads", uploadId)));
});
