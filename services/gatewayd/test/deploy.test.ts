import assert from "node:assert/strict";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { AppState, DeploymentState, StepState } from "@unkey/api/gateway";
import { VmState } from "@unkey/api/metal";
import { deployAndWait } from "./harness/deploying.ts";
import { ask } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { helloProgram } from "./harness/programs.ts";

let around: Surroundings;
let gateway: Gateway;
before(async () => {
  around = await surroundings();
  gateway = await around.start();
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});

test("a deployment goes through its steps and the app answers over https", async () => {
  const client = gateway.client();
  const deployment = await deployAndWait(client, {
    app: "first",
    image: { source: { case: "reference", value: "hello:1" } },
  });
  assert.equal(deployment.state, DeploymentState.SUCCEEDED, JSON.stringify(deployment.failure));
  assert.deepEqual(
    deployment.steps.map(({ kind, state }) => [kind, state]),
    [
      ["build", StepState.DONE],
      ["place", StepState.DONE],
      ["create", StepState.DONE],
      ["boot", StepState.DONE],
      ["health", StepState.DONE],
      ["route", StepState.DONE],
      ["drain", StepState.SKIPPED],
    ],
  );
  assert.equal(deployment.port, 8080);
  assert.equal(deployment.url, `https://first.localhost:${gateway.ingressPort}`);
  const answer = await ask({ port: gateway.ingressPort, ca: gateway.ca, host: "first.localhost" });
  assert.equal(answer.status, 200);
  assert.equal(answer.body, "hello\n");
  const app = await client.getApp({ app: "first" });
  assert.equal(app.state, AppState.SERVING);
  assert.deepEqual(app.vmIds, deployment.vmIds);
});

test("a second release replaces the first and its VMs are removed", async () => {
  const client = gateway.client();
  const image = { source: { case: "reference", value: "hello:1" } } as const;
  const one = await deployAndWait(client, { app: "second", image });
  around.metald.run = helloProgram("hello again");
  const two = await deployAndWait(client, { app: "second", image });
  around.metald.run = helloProgram("hello");
  assert.equal(two.state, DeploymentState.SUCCEEDED, JSON.stringify(two.failure));
  const answer = await ask({ port: gateway.ingressPort, ca: gateway.ca, host: "second.localhost" });
  assert.equal(answer.body, "hello again\n");
  assert.equal(around.metald.vms.get(one.vmIds[0]!)?.vm.state, VmState.DELETED);
  assert.equal(two.steps.at(-1)?.state, StepState.DONE);
  assert.deepEqual(
    around.metald.calls
      .filter(({ vmId }) => vmId === one.vmIds[0])
      .map(({ method }) => method)
      .slice(-2),
    ["shutdownVm", "deleteVm"],
  );
});

test("the bootstrap key is written once, for its owner only, and never logged", async () => {
  const file = join(around.dataDir, "bootstrap-key");
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  const key = (await readFile(file, "utf8")).trim();
  assert.match(key, /^unkey_[0-9a-f]{64}$/);
  assert.ok(around.logs.length > 0);
  assert.ok(around.logs.every((line) => !line.includes(key)));
});
