import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fillCompileCache, workerFlags } from "./program.ts";

test("each kind of worker finds its modules compiled under its own flags", async (context) => {
  const root = await mkdtemp(join(tmpdir(), "worker-program-"));
  context.after(() => rm(root, { recursive: true, force: true }));
  const filled = join(root, "filled");
  {
    const filling = fillCompileCache(filled, [12_345]);
    for (const [kind, flags] of Object.entries(workerFlags)) {
      const folder = await folderUnder(flags, join(root, kind));
      const users = [folder, folder.replace(/-\d+$/, "-12345")];
      while (!(await Promise.all(users.map((name) => exists(join(filled, name))))).every(Boolean)) {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      assert.ok((await readdir(join(filled, folder))).length > 50, "the worker is made of many modules");
    }
    await filling[Symbol.asyncDispose]();
  }
  assert.deepEqual((await readdir(root)).toSorted(), ["assemble", "filled", "unpack"]);
});

/** What Node calls the folder of a process with those flags. */
async function folderUnder(flags: readonly string[], cache: string): Promise<string> {
  execFileSync(process.execPath, [...flags, "--max-old-space-size=700", "-e", ""], {
    env: { NODE_COMPILE_CACHE: cache },
  });
  const [folder] = await readdir(cache);
  return folder ?? assert.fail("Node has made no folder");
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );
