import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtemp, readdir, readlink, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fillCompileCache, workerFlags } from "./program.ts";

test("each kind of worker finds its modules compiled under its own flags", async (context) => {
  const root = await mkdtemp(join(tmpdir(), "worker-program-"));
  context.after(() => rm(root, { recursive: true, force: true }));
  const filled = join(root, "filled");
  {
    await using filling = fillCompileCache(filled, [12_345]);
    await filling.filled;
    for (const [kind, flags] of Object.entries(workerFlags)) {
      const folder = await folderUnder(flags, join(root, kind));
      assert.equal(await readlink(join(filled, folder.replace(/-\d+$/, "-12345"))), folder);
      const modules = await readdir(join(filled, folder));
      assert.ok(modules.length > 50, "the worker is made of many modules");
      for (const module of modules) assert.equal((await stat(join(filled, folder, module))).mode & 0o777, 0o644);
    }
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
