import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { newId } from "@unkey/base";
import { startBuilder, temporary } from "./harness.ts";

test("a second builderd is refused its data directory, and touches nothing in it", async (context) => {
  const directory = await temporary(context);
  const tenantId = newId("tenant");
  const first = await startBuilder(context, { directory });
  await mkdir(join(directory, "scratch", "of a running build"), { recursive: true });
  await assert.rejects(startBuilder(context, { directory }), {
    message: `another daemon uses ${directory}: stop it, or set UNKEY_BUILDERD_DATA_DIR to a directory of this one's own`,
  });
  assert.deepEqual(await first.scratch(), ["of a running build"]);
  assert.deepEqual((await first.as(tenantId).listBuilds({ tenantId })).builds, []);
  await first.close();
  const second = await startBuilder(context, { directory });
  assert.deepEqual(await second.scratch(), []);
  await second.close();
});
