import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { CreateDeploymentRequestSchema } from "@unkey/api/gateway";
import { VmSchema } from "@unkey/api/metal";
import { newId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { DeploymentStore } from "./deployment-store.ts";
import { migrations } from "./schema.ts";
import { ClaimLost, WorkStore } from "./work-store.ts";

test("a replica whose claim was taken over can write nothing any more, and its successor can", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const [tenantId, deploymentId, vmId] = [newId("tenant"), newId("dep"), newId("vm")];
  await sql.run("INSERT INTO tenant (tenant_id, created_at_ms) VALUES (?, 1)", [tenantId]);
  await new DeploymentStore(sql).create({
    tenantId,
    deploymentId,
    appId: newId("app"),
    appName: "web",
    request: create(CreateDeploymentRequestSchema, { app: "web" }),
    withCredentials: false,
    nowMs: 1000,
    maxOpen: 1,
  });
  const work = new WorkStore(sql);
  const leaseMs = 500;
  const frozen = (await work.claim("frozen", 1000, leaseMs)) ?? assert.fail("no claim");
  await work.startStep(frozen, "build", 1000);
  assert.equal(await work.claim("successor", 1499, leaseMs), undefined, "the lease still holds");
  const successor = (await work.claim("successor", 1500, leaseMs)) ?? assert.fail("no claim");

  const vm = { vmId, ordinal: 0, hostId: newId("host"), reservationId: newId("rsv") };
  const failure = { step: "build", reason: "INTERNAL", message: "late", nextStep: "", lastLines: [] };
  const writes: Readonly<Record<string, () => Promise<unknown>>> = {
    renew: () => work.renew(frozen, 9000),
    load: () => work.load(frozen),
    startStep: () => work.startStep(frozen, "build", 1600),
    describeStep: () => work.describeStep(frozen, "build", "late"),
    endStep: () => work.endStep(frozen, "build", "finish", "late", 1600),
    saveBuild: () => work.saveBuild(frozen, { buildId: "late" }),
    planVm: () => work.planVm(frozen, vm, 1600),
    sawVm: () => work.sawVm(frozen, create(VmSchema, { vmId })),
    condemnVms: () => work.condemnVms(frozen),
    route: () => work.route(frozen, 1600, 1700),
    fail: () => work.fail(frozen, "build", failure, 1600),
    cancel: () => work.cancel(frozen),
    undoStep: () => work.undoStep(frozen, "build", 1600),
    finish: () => work.finish(frozen, "complete", 1600),
  };
  const everything = async () => [
    await sql.query("SELECT * FROM deployment"),
    await sql.query("SELECT * FROM deployment_step ORDER BY position"),
    await sql.query("SELECT * FROM vm"),
    await sql.query("SELECT * FROM app"),
  ];
  const before = await everything();
  for (const [name, write] of Object.entries(writes)) await assert.rejects(write, ClaimLost, name);
  await work.release(frozen);
  assert.deepEqual(await everything(), before);

  await work.endStep(successor, "build", "finish", "built", 1600);
  const { steps } = await work.load(successor);
  assert.equal(steps[0]?.state, "done");
});
