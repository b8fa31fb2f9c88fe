import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { CreateDeploymentRequestSchema } from "@unkey/api/gateway";
import { newId, type TenantId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { DeploymentStore } from "../src/store/deployment-store.ts";
import { migrations } from "../src/store/schema.ts";
import { WorkStore } from "../src/store/work-store.ts";

test("a tenant whose deployments hang keeps neither all places nor the next one", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const deployments = new DeploymentStore(sql);
  const work = new WorkStore(sql);
  let nowMs = 1_000_000;
  const add = async (tenantId: TenantId, appName: string) => {
    const deploymentId = newId("dep", nowMs++);
    const request = create(CreateDeploymentRequestSchema, { app: appName });
    await deployments.create({
      tenantId,
      deploymentId,
      appId: newId("app", nowMs),
      appName,
      request,
      withCredentials: false,
      nowMs,
      maxOpen: 100,
    });
    return deploymentId;
  };
  const [greedy, other] = [newId("tenant"), newId("tenant")];
  await sql.run("INSERT INTO tenant (tenant_id, created_at_ms) VALUES (?, 1), (?, 1)", [greedy, other]);
  const first = [];
  for (let i = 0; i < 5; i++) first.push(await add(greedy, `greedy-${i}`));
  const claim = async () => (await work.claim("me", nowMs, 60_000, 3))?.deploymentId;
  assert.deepEqual([await claim(), await claim()], first.slice(0, 2));
  const late = await add(other, "other");
  assert.equal(await claim(), late);
  assert.equal(await claim(), first[2]);
  assert.equal(await claim(), undefined);
});
