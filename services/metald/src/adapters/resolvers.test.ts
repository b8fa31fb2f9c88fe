import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { hostResolvers } from "./resolvers.ts";

test("looks behind a local stub, and leaves out what a guest cannot reach", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "metald-resolv-"));
  t.after(() => rm(dir, { recursive: true }));
  const [stub, real] = [join(dir, "stub"), join(dir, "real")];
  await writeFile(stub, "# local\nnameserver 127.0.0.53\noptions edns0\n");
  await writeFile(real, "nameserver 9.9.9.9\nnameserver fd00::1\nnameserver 10.0.0.2\n");
  assert.deepEqual(await hostResolvers([stub, real]), ["9.9.9.9", "10.0.0.2"]);
  assert.deepEqual(await hostResolvers([stub, join(dir, "missing")]), []);
});
