import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { BuildFailureSchema, BuildState } from "@unkey/api/builder";
import { ErrorInfoSchema } from "@unkey/api/common";
import { AppState, DeploymentState } from "@unkey/api/gateway";
import { gib } from "@unkey/base";
import { deployAndWait, helloImage, untilTerminal } from "./harness/deploying.ts";
import { ask } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { exitingProgram, helloProgram } from "./harness/programs.ts";

let around: Surroundings;
let gateway: Gateway;
before(async () => {
  around = await surroundings();
  gateway = await around.start({ PATIENCE: "300ms" });
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});
afterEach(() => {
  around.metald.run = helloProgram("hello");
  around.builderd.finish = (build) => void (build.state = BuildState.COMPLETED);
});

function buildsFail(gate: Promise<void> = Promise.resolve()): void {
  around.builderd.finish = async (build) => {
    await gate;
    build.state = BuildState.FAILED;
    build.failure = create(BuildFailureSchema, { reason: "IMAGE_NOT_FOUND", message: "none", nextStep: "Check it." });
  };
}

async function reasonOf(promise: Promise<unknown>): Promise<string | undefined> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof ConnectError, "it was not refused");
  return error.findDetails(ErrorInfoSchema)[0]?.reason;
}

const statusOf = async (app: string): Promise<number> =>
  (await ask({ port: gateway.ingressPort, ca: gateway.ca, host: `${app}.localhost`, insecure: true })).status;

test("an app goes with its first deployment when that fails before there was a VM; what was tried can be read", async () => {
  const client = gateway.client();
  buildsFail();
  const failed = await deployAndWait(client, { app: "typo" });
  assert.equal(failed.state, DeploymentState.FAILED);
  assert.equal(await reasonOf(client.getApp({ app: "typo" })), "APP_NOT_FOUND");
  assert.ok((await client.listApps({})).apps.every(({ name }) => name !== "typo"));
  while ((await statusOf("typo")) !== 404) await new Promise((resolve) => setTimeout(resolve, 50));
  const { deployments } = await client.listDeployments({ app: "typo" });
  assert.deepEqual(
    deployments.map(({ deploymentId, failure }) => [deploymentId, failure?.reason]),
    [[failed.deploymentId, "IMAGE_NOT_FOUND"]],
  );
  around.builderd.finish = (build) => void (build.state = BuildState.COMPLETED);
  const second = await deployAndWait(client, { app: "typo" });
  assert.equal(second.state, DeploymentState.SUCCEEDED, JSON.stringify(second.failure));
  assert.notEqual(second.appId, failed.appId, "another app of that name");
  await client.deleteApp({ app: "typo" });
});

test("an app of which another deployment waits stays for that one", async () => {
  const client = gateway.client();
  const gate = Promise.withResolvers<void>();
  buildsFail(gate.promise);
  const { deploymentId: first, appId } = await client.createDeployment({ app: "twice", image: helloImage });
  const { deploymentId: second } = await client.createDeployment({ app: "twice", image: helloImage });
  const { deploymentId: third } = await client.createDeployment({ app: "twice", image: helloImage });
  assert.equal((await client.cancelDeployment({ deploymentId: third })).state, DeploymentState.CANCELLED);
  gate.resolve();
  assert.equal((await untilTerminal(client, first)).state, DeploymentState.FAILED);
  const last = await untilTerminal(client, second);
  assert.deepEqual([last.state, last.appId], [DeploymentState.FAILED, appId]);
  assert.equal(await reasonOf(client.getApp({ app: "twice" })), "APP_NOT_FOUND", "the last one takes it along");
});

test("an app of which a VM has run stays, and so does one that serves", async () => {
  const client = gateway.client();
  around.metald.run = exitingProgram(3, "bye\n");
  const died = await deployAndWait(client, { app: "dies" });
  assert.equal(died.state, DeploymentState.FAILED);
  assert.equal((await client.getApp({ app: "dies" })).state, AppState.EMPTY);
  around.metald.run = helloProgram("hello");
  const good = await deployAndWait(client, { app: "serves" });
  buildsFail();
  assert.equal((await deployAndWait(client, { app: "serves" })).state, DeploymentState.FAILED);
  assert.equal((await client.getApp({ app: "serves" })).deploymentId, good.deploymentId);
  assert.equal(await statusOf("serves"), 200);
});

test("an app of which the only deployment is given up before it began, or without room for a VM, goes", async () => {
  const client = gateway.client();
  const gate = Promise.withResolvers<void>();
  around.builderd.finish = async (build) => {
    await gate.promise;
    build.state = BuildState.COMPLETED;
  };
  const { deploymentId } = await client.createDeployment({ app: "changed-mind", image: helloImage });
  await client.cancelDeployment({ deploymentId });
  assert.equal((await untilTerminal(client, deploymentId)).state, DeploymentState.CANCELLED);
  gate.resolve();
  assert.equal(await reasonOf(client.getApp({ app: "changed-mind" })), "APP_NOT_FOUND");
  const resources = { vcpuCount: 1, memoryBytes: BigInt(3 * gib), diskBytes: BigInt(gib) };
  assert.equal((await deployAndWait(client, { app: "large", resources })).state, DeploymentState.SUCCEEDED);
  const full = await deployAndWait(client, { app: "no-room", resources });
  assert.equal(full.failure?.reason, "HOSTS_FULL");
  assert.equal(await reasonOf(client.getApp({ app: "no-room" })), "APP_NOT_FOUND");
});
