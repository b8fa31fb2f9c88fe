import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { type Build, BuildState } from "@unkey/api/builder";
import { newId } from "@unkey/base";
import { assembleImage, exportLayoutArchive } from "@unkey/oci";
import type { ImageWorkers } from "../src/worker/image-workers.ts";
import {
  atEnd,
  type Builder,
  build,
  fromRegistry,
  fromUpload,
  needsRootfs,
  startBuilder,
  temporary,
  upload,
} from "./harness.ts";

/*
 * A build is cancelled in each state that it can be in while the work of that state hangs, as it does with a registry, a worker or
 * an asset store that answers no more. The call's answer means that nothing of the build is left.
 */

const tenantId = newId("tenant");
/** Away from those of other tests that run at the same time. */
const uids = 2 ** 20;
const workerUidBase = 0x7000_0000 + randomInt(64) * uids;

async function layoutOf(context: TestContext): Promise<string> {
  const directory = join(await temporary(context), "layout");
  const content = "x".repeat(1 << 20);
  await assembleImage({ directory, files: [{ path: "app", content }], config: { Cmd: ["/app"] } });
  return directory;
}

/** Confined processes of these tests, by the uids that are theirs. */
async function confined(): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
    const uid = Number(/^Uid:\s+(\d+)/m.exec(status)?.[1]);
    if (uid >= workerUidBase && uid < workerUidBase + uids) found.push(status);
  }
  return found;
}

async function startedFrom(builder: Builder, image: ReturnType<typeof fromUpload>): Promise<string> {
  return (await builder.as(tenantId).buildImage({ tenantId, idempotencyKey: newId("op"), ...image })).buildId;
}

/** Resolves when the build is in the state. */
async function reaches(builder: Builder, buildId: string, state: BuildState): Promise<void> {
  for await (const now of builder.as(tenantId).watchBuild({ tenantId, buildId })) {
    if (now.state === state) return;
    assert.equal(now.failure, undefined);
  }
  assert.fail(`${buildId} never came there`);
}

async function cancelledWithoutTrace(builder: Builder, buildId: string): Promise<Build> {
  const cancelled = await builder.as(tenantId).cancelBuild({ tenantId, buildId });
  assert.equal(cancelled.state, BuildState.CANCELLED);
  assert.deepEqual(await builder.scratch(), [], "scratch directory");
  assert.deepEqual(await readdir(join(builder.directory, "uploads")), [], "uploads");
  assert.deepEqual(await confined(), [], "processes");
  assert.deepEqual(builder.assets.stored, [], "assets");
  assert.ok(cancelled.steps.every(({ endedAtMs }) => endedAtMs > 0n));
  const quota = await builder.as(tenantId).getBuildQuota({ tenantId });
  assert.equal(quota.concurrentUsed, 0);
  return cancelled;
}

/** Serves a layout, but stops in the middle of each layer. */
async function stallingRegistry(context: TestContext, layout: string) {
  const index = JSON.parse(await readFile(join(layout, "index.json"), "utf8")) as { manifests: { digest: string }[] };
  const blob = (digest: string) => readFile(join(layout, "blobs", "sha256", digest.replace("sha256:", "")));
  const manifestBytes = await blob(index.manifests[0]?.digest ?? "");
  const manifest = JSON.parse(manifestBytes.toString()) as {
    mediaType: string;
    config: { digest: string };
    layers: { digest: string; size: number }[];
  };
  const stalled = new Set<ServerResponse>();
  const waiters: (() => void)[] = [];
  const server = createServer(async ({ url = "" }, response) => {
    if (url === "/v2/") response.end("{}");
    else if (url.includes("/manifests/")) response.setHeader("content-type", manifest.mediaType).end(manifestBytes);
    else if (url.endsWith(manifest.config.digest)) response.end(await blob(manifest.config.digest));
    else {
      const [layer] = manifest.layers;
      const bytes = await blob(layer?.digest ?? "");
      response.setHeader("content-length", bytes.length);
      response.write(bytes.subarray(0, bytes.length / 2));
      stalled.add(response);
      response.on("close", () => stalled.delete(response));
      for (const wake of waiters.splice(0)) wake();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(context, async () => {
    server.closeAllConnections();
    server.close();
  });
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    stalled,
    async stalls(): Promise<void> {
      while (stalled.size === 0) await new Promise<void>((resolve) => waiters.push(resolve));
    },
  };
}

test("PENDING", async (context) => {
  const held = Promise.withResolvers<void>();
  const builder = await startBuilder(context, {
    workerUidBase,
    concurrency: 1,
    workers: hangingWorkers("unpackLayer", held.resolve),
  });
  const layout = await layoutOf(context);
  const running = await startedFrom(builder, fromUpload((await upload(builder, tenantId, layout)).uploadId));
  await held.promise;
  const waiting = await startedFrom(builder, fromUpload((await upload(builder, tenantId, layout)).uploadId));
  const cancelled = await builder.as(tenantId).cancelBuild({ tenantId, buildId: waiting });
  assert.deepEqual(
    cancelled.steps.map(({ state }) => state),
    [BuildState.PENDING, BuildState.CANCELLED],
  );
  assert.equal((await readdir(join(builder.directory, "uploads"))).length, 1, "its own upload is gone already");
  await cancelledWithoutTrace(builder, running);
});

test("PULLING, while a confined process waits for the rest of a layer", { skip: needsRootfs }, async (context) => {
  const builder = await startBuilder(context, { workerUidBase });
  const registry = await stallingRegistry(context, await layoutOf(context));
  const buildId = await startedFrom(builder, fromRegistry(`${registry.host}/app`));
  await registry.stalls();
  while ((await confined()).length === 0) await new Promise(setImmediate);
  assert.equal((await builder.as(tenantId).getBuild({ tenantId, buildId })).state, BuildState.PULLING);
  await cancelledWithoutTrace(builder, buildId);
  while (registry.stalled.size > 0) await new Promise(setImmediate); // the connection is given up too
  const layers = await readdir(join(builder.directory, "layers"));
  assert.ok(
    layers.every((name) => name.startsWith("layers.db")),
    `the cache holds no half of a layer: ${layers.join()}`,
  );
});

for (const [name, state, method] of [
  ["EXTRACTING", BuildState.EXTRACTING, "unpackLayer"],
  ["WRITING", BuildState.WRITING, "assembleRootfs"],
] as const) {
  test(name, async (context) => {
    const builder = await startBuilder(context, { workerUidBase, workers: hangingWorkers(method) });
    const { uploadId } = await upload(builder, tenantId, await layoutOf(context));
    const buildId = await startedFrom(builder, fromUpload(uploadId));
    await reaches(builder, buildId, state);
    await cancelledWithoutTrace(builder, buildId);
  });
}

test("REGISTERING, while the asset store takes the image and says no more", { skip: needsRootfs }, async (context) => {
  const builder = await startBuilder(context, { workerUidBase });
  const entered = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  atEnd(context, async () => ended.resolve());
  builder.assets.beforeUpload = async () => {
    entered.resolve();
    await ended.promise;
    throw new Error("nobody is there any more");
  };
  const layout = await layoutOf(context);
  const buildId = await startedFrom(builder, fromUpload((await upload(builder, tenantId, layout)).uploadId));
  await entered.promise;
  assert.equal((await builder.as(tenantId).getBuild({ tenantId, buildId })).state, BuildState.REGISTERING);
  await cancelledWithoutTrace(builder, buildId);
  builder.assets.beforeUpload = async () => {};
  const again = await build(builder, tenantId, fromUpload((await upload(builder, tenantId, layout)).uploadId));
  assert.deepEqual([again.state, again.cacheHit], [BuildState.COMPLETED, false], JSON.stringify(again.failure));
});

test("an upload that is discarded is gone, at once or with the build that reads it", async (context) => {
  const builder = await startBuilder(context, { workerUidBase, workers: hangingWorkers("assembleRootfs") });
  const layout = await layoutOf(context);
  const uploads = () => readdir(join(builder.directory, "uploads"));
  const client = builder.as(tenantId);
  const { uploadId: unused } = await upload(builder, tenantId, layout);
  const stranger = newId("tenant");
  await builder.as(stranger).discardUpload({ tenantId: stranger, uploadId: unused });
  assert.deepEqual(await uploads(), [unused], "it is another's");
  await client.discardUpload({ tenantId, uploadId: unused });
  await client.discardUpload({ tenantId, uploadId: unused });
  assert.deepEqual(await uploads(), []);
  const { uploadId } = await client.uploadImage(
    (async function* () {
      yield { part: { case: "header" as const, value: { tenantId, name: "a.tar" } } };
      for await (const value of exportLayoutArchive(layout)) yield { part: { case: "chunk" as const, value } };
    })(),
  );
  const buildId = await startedFrom(builder, fromUpload(uploadId));
  await reaches(builder, buildId, BuildState.WRITING);
  await client.discardUpload({ tenantId, uploadId });
  assert.deepEqual(await uploads(), [uploadId], "the build reads it");
  await cancelledWithoutTrace(builder, buildId);
});

/** Workers of which one part answers no more until it is told to end; the others leave what they have to. */
function hangingWorkers(hangs: keyof ImageWorkers, entered: () => void = () => {}): ImageWorkers {
  const hang = (signal: AbortSignal) =>
    new Promise<never>((_, reject) => {
      entered();
      if (signal.aborted) reject(signal.reason);
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  return {
    unpackLayer: async ({ chunks, directory, signal }) => {
      for await (const _ of chunks);
      if (hangs === "unpackLayer") await hang(signal);
      await mkdir(directory);
      for (const name of ["index", "content"]) await writeFile(join(directory, name), "");
      return directory;
    },
    assembleRootfs: ({ signal }) => hang(signal),
  };
}
