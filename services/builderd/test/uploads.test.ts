import assert from "node:assert/strict";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { BuildState } from "@unkey/api/builder";
import { newId } from "@unkey/base";
import { assembleImage } from "@unkey/oci";
import type { ImageWorkers } from "../src/worker/image-workers.ts";
import { fromUpload, startBuilder, temporary, upload } from "./harness.ts";

const tenantId = newId("tenant");

/** Workers that assemble until they are told to end. */
const hanging: ImageWorkers = {
  unpackLayer: async ({ chunks, directory }) => {
    for await (const _ of chunks);
    await mkdir(directory);
    for (const name of ["index", "content", "tails"]) await writeFile(join(directory, name), "");
    return directory;
  },
  startAssembler: async ({ signal }) => ({
    add: () => undefined,
    write: () =>
      new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true })),
    [Symbol.asyncDispose]: async () => {},
  }),
};

test("an upload that is discarded is gone, at once or with the build that reads it", async (context) => {
  const builder = await startBuilder(context, { workers: hanging });
  const layout = join(await temporary(context), "layout");
  await assembleImage({ directory: layout, files: [{ path: "app", content: "x" }], config: { Cmd: ["/app"] } });
  const uploads = () => readdir(join(builder.directory, "uploads"));
  const client = builder.as(tenantId);

  const { uploadId: unused } = await upload(builder, tenantId, layout);
  const stranger = newId("tenant");
  await builder.as(stranger).discardUpload({ tenantId: stranger, uploadId: unused });
  assert.deepEqual(await uploads(), [unused], "it is another's");
  await client.discardUpload({ tenantId, uploadId: unused });
  await client.discardUpload({ tenantId, uploadId: unused });
  assert.deepEqual(await uploads(), []);

  const { uploadId } = await upload(builder, tenantId, layout, "", "a.tar");
  const build = await client.buildImage({ tenantId, idempotencyKey: newId("op"), ...fromUpload(uploadId) });
  assert.equal(build.image, "a.tar");
  const { buildId } = build;
  for await (const { state } of client.watchBuild({ tenantId, buildId })) if (state === BuildState.WRITING) break;
  await client.discardUpload({ tenantId, uploadId });
  assert.deepEqual(await uploads(), [uploadId], "the build reads it");
  assert.equal((await client.cancelBuild({ tenantId, buildId })).state, BuildState.CANCELLED);
  assert.deepEqual(await uploads(), []);
});
