import assert from "node:assert/strict";
import { test } from "node:test";
import { DeploymentState } from "@unkey/api/gateway";
import { openSqlite } from "@unkey/sql";
import { migrations } from "../src/store/schema.ts";
import { deployAndWait } from "./harness/deploying.ts";
import { surroundings } from "./harness/platform.ts";
import { exitingProgram, helloProgram } from "./harness/programs.ts";

test("an environment is kept as long as a VM can be made with it, and no longer", async () => {
  await using around = await surroundings();
  await using gateway = await around.start();
  const client = gateway.client();
  const kept = async () => {
    await using sql = await openSqlite({ path: `${around.dataDir}/gatewayd.db`, migrations });
    const rows = await sql.query<{ request: Uint8Array }>("SELECT request FROM deployment ORDER BY deployment_id");
    return rows.map(
      ({ request }) =>
        Buffer.from(request)
          .toString("latin1")
          .match(/secret-[a-z]+/)?.[0] ?? "",
    );
  };
  around.metald.run = helloProgram("hello");
  const env = (value: string) => [{ name: "TOKEN", value }];
  await deployAndWait(client, { app: "kept", env: env("secret-served") });
  around.metald.run = exitingProgram(1, "");
  const failed = await deployAndWait(client, { app: "kept", env: env("secret-failed") });
  assert.equal(failed.state, DeploymentState.FAILED);
  assert.deepEqual(await kept(), ["secret-served", ""]);
  await client.deleteApp({ app: "kept" });
  assert.deepEqual(await kept(), ["", ""]);
});
