import assert from "node:assert/strict";
import { link, mkdtemp, rm, statfs, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { type Excess, type UsageLimits, watchUsage } from "./usage-watch.ts";

async function folder(context: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), "usage-"));
  context.after(() => rm(path, { recursive: true }));
  return path;
}

async function excess(directory: string, limits: Partial<UsageLimits>): Promise<Excess> {
  const { promise, resolve } = Promise.withResolvers<Excess>();
  using _watch = watchUsage(directory, { bytes: 2 ** 40, files: 64, reserveBytes: 0, ...limits }, resolve);
  return await promise;
}

test("what lies there is counted, each file once, also one of several names", async (context) => {
  const directory = await folder(context);
  await writeFile(join(directory, "one"), Buffer.alloc(200_000, 1));
  await link(join(directory, "one"), join(directory, "two"));
  assert.equal(await excess(directory, { bytes: 100_000 }), "directory");
  assert.equal(await excess(directory, { bytes: 300_000, files: 1 }), "directory");
});

test("a disk that is almost full is told, whatever has filled it", async (context) => {
  const directory = await folder(context);
  const { blocks, bsize } = await statfs(directory);
  assert.equal(await excess(directory, { reserveBytes: blocks * bsize + 1 }), "disk");
});
