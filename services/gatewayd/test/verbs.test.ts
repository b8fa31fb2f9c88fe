import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@unkey/api/common";
import { AppState, DeploymentState } from "@unkey/api/gateway";
import { VmState } from "@unkey/api/metal";
import { deployAndWait, helloImage, untilTerminal } from "./harness/deploying.ts";
import { unavailable } from "./harness/fake-metald.ts";
import { ask } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { exitingProgram, helloProgram } from "./harness/programs.ts";

let around: Surroundings;
let gateway: Gateway;
before(async () => {
  around = await surroundings();
  gateway = await around.start({ PATIENCE: "200ms" });
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});
afterEach(() => {
  around.metald.run = helloProgram("hello");
  around.metald.before = around.metald.after = () => undefined;
});

async function refusal(promise: Promise<unknown>) {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof ConnectError, String(error));
    const info = error.findDetails(ErrorInfoSchema)[0];
    return { code: error.code, message: error.rawMessage, reason: info?.reason, metadata: info?.metadata ?? {} };
  }
  throw new Error("it was not refused");
}

const status = async (app: string) =>
  (await ask({ port: gateway.ingressPort, ca: gateway.ca, host: `${app}.localhost`, insecure: true })).status;

async function eventually(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 600; i++) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${what} did not come true`);
}

test("an app stops, stays stopped, starts, and is deleted; its name is free then", async () => {
  const client = gateway.client();
  const { vmIds } = await deployAndWait(client, { app: "life", vmCount: 2 });
  const stopped = await client.stopApp({ app: "life" });
  assert.equal(stopped.state, AppState.STOPPED);
  assert.deepEqual(stopped.vmIds, vmIds);
  assert.equal((await client.stopApp({ app: "life" })).state, AppState.STOPPED, "stopping again is success");
  assert.deepEqual(
    vmIds.map((id) => around.metald.vms.get(id)?.vm.state),
    [VmState.STOPPED, VmState.STOPPED],
  );
  assert.equal((await client.startApp({ app: "life" })).state, AppState.SERVING);
  assert.equal((await client.startApp({ app: "life" })).state, AppState.SERVING, "starting again is success");
  assert.equal(await status("life"), 200);
  const deleted = await client.deleteApp({ app: "life" });
  assert.equal(deleted.state, AppState.DELETED);
  assert.equal(
    (await client.deleteApp({ app: "life" })).appId,
    deleted.appId,
    "deleting again answers the deleted app",
  );
  assert.equal((await refusal(client.getApp({ app: "life" }))).reason, "APP_NOT_FOUND");
  const again = await deployAndWait(client, { app: "life" });
  assert.notEqual(again.appId, deleted.appId);
  await client.deleteApp({ app: "life" });
  const { vms } = await client.listVms({ app: "life", includeDeleted: true });
  assert.deepEqual(
    vms.map(({ state }) => state),
    [VmState.DELETED],
  );
  assert.deepEqual((await client.listVms({ app: "life" })).vms, []);
});

test("an app that does not come up again stays stopped, and its caller sees why", async () => {
  const client = gateway.client();
  const { vmIds } = await deployAndWait(client, { app: "moody" });
  await client.stopApp({ app: "moody" });
  around.metald.run = exitingProgram(9, "out of luck\n");
  const { reason, metadata } = await refusal(client.startApp({ app: "moody" }));
  assert.equal(reason, "APP_EXITED");
  assert.match(metadata["lastLines"] ?? "", /out of luck/);
  assert.equal((await client.getApp({ app: "moody" })).state, AppState.STOPPED);
  assert.equal(around.metald.vms.get(vmIds[0]!)?.vm.state, VmState.STOPPED);
  assert.equal(await status("moody"), 503);
  around.metald.run = helloProgram("hello");
  await client.startApp({ app: "moody" });
  assert.equal(await status("moody"), 200);
});

test("a stop whose host is away is told so and carried out when the host is back", async () => {
  const client = gateway.client();
  const { vmIds } = await deployAndWait(client, { app: "late" });
  around.metald.before = (method) => {
    if (method === "shutdownVm") throw unavailable();
  };
  const { code, message } = await refusal(client.stopApp({ app: "late" }));
  assert.equal(code, Code.Unavailable);
  assert.match(message, /not stopped yet/);
  assert.equal(await status("late"), 503, "it is off the ingress at once");
  around.metald.before = () => undefined;
  await eventually("the VM is stopped", () => around.metald.vms.get(vmIds[0]!)?.vm.state === VmState.STOPPED);
  assert.equal((await client.getApp({ app: "late" })).state, AppState.STOPPED);
  await client.deleteApp({ app: "late" });
});

test("a delete whose host is away goes on by itself", async () => {
  const client = gateway.client();
  const { vmIds } = await deployAndWait(client, { app: "ghost" });
  around.metald.before = (method) => {
    if (method === "shutdownVm" || method === "deleteVm") throw unavailable();
  };
  assert.equal((await refusal(client.deleteApp({ app: "ghost" }))).code, Code.Unavailable);
  assert.equal(
    (await refusal(client.createDeployment({ app: "ghost", image: helloImage }))).reason,
    "APP_CHANGED_MEANWHILE",
  );
  around.metald.before = () => undefined;
  await eventually("the VM is deleted", () => around.metald.vms.get(vmIds[0]!)?.vm.state === VmState.DELETED);
  await eventually("the name is free", async () => {
    const { apps } = await client.listApps({});
    return apps.every(({ name }) => name !== "ghost");
  });
});

test("an app that is being deployed can neither be stopped nor deleted", async () => {
  const client = gateway.client();
  const gate = Promise.withResolvers<void>();
  around.metald.before = async (method) => {
    if (method === "bootVm") await gate.promise;
  };
  const { deploymentId } = await client.createDeployment({ app: "busy", image: helloImage });
  for (const verb of ["stopApp", "startApp", "deleteApp"] as const) {
    const { reason, message, code } = await refusal(client[verb]({ app: "busy" }));
    if (verb === "startApp") {
      assert.equal(reason, "APP_NOT_DEPLOYED");
      continue;
    }
    assert.deepEqual([reason, code], ["DEPLOYMENT_IN_PROGRESS", Code.FailedPrecondition]);
    assert.match(message, new RegExp(deploymentId));
  }
  assert.equal((await client.getApp({ app: "busy" })).state, AppState.EMPTY);
  await eventually("the ingress knows the name", async () => (await status("busy")) === 503);
  gate.resolve();
  assert.equal((await untilTerminal(client, deploymentId)).state, DeploymentState.SUCCEEDED);
  await client.deleteApp({ app: "busy" });
});

test("verbs on one VM reach its host, and routing follows", async () => {
  const client = gateway.client();
  const { vmIds } = await deployAndWait(client, { app: "single" });
  const vmId = vmIds[0]!;
  assert.equal((await client.pauseVm({ vmId })).state, VmState.PAUSED);
  assert.equal((await client.getVm({ vmId })).state, VmState.PAUSED);
  assert.equal((await client.resumeVm({ vmId })).state, VmState.RUNNING);
  assert.equal((await client.rebootVm({ vmId })).incarnation, 2);
  assert.equal((await client.stopVm({ vmId })).state, VmState.STOPPED);
  assert.equal(await status("single"), 503);
  assert.equal((await client.getApp({ app: "single" })).state, AppState.STOPPED);
  assert.equal((await client.startVm({ vmId })).state, VmState.RUNNING);
  assert.equal(await status("single"), 200);
  await around.metald.crash(vmId, 1);
  assert.equal((await client.getApp({ app: "single" })).state, AppState.DOWN);
  assert.equal(await status("single"), 502);
  assert.equal((await client.startApp({ app: "single" })).state, AppState.SERVING, "a start brings a dead VM back");
  assert.equal((await client.deleteVm({ vmId })).state, VmState.DELETED);
  assert.equal((await client.deleteVm({ vmId })).state, VmState.DELETED, "deleting again is success");
  assert.equal((await refusal(client.startVm({ vmId }))).reason, "VM_STATE_CONFLICT");
  assert.equal((await client.getVm({ vmId })).state, VmState.DELETED);
  await client.deleteApp({ app: "single" });
});

test("a tenant follows its VMs", async () => {
  const client = gateway.client();
  await deployAndWait(client, { app: "here-before" });
  const left = new AbortController();
  const vms = client.watchVms({}, { signal: left.signal })[Symbol.asyncIterator]();
  assert.equal((await vms.next()).done, false, "what is there comes first");
  const { vmIds } = await deployAndWait(client, { app: "watched" });
  await client.deleteApp({ app: "watched" });
  const states: VmState[] = [];
  while (states.at(-1) !== VmState.DELETED) {
    const { value } = await vms.next();
    if (value?.vmId === vmIds[0]) states.push(value.state);
  }
  assert.deepEqual(states, [VmState.CREATED, VmState.RUNNING, VmState.STOPPED, VmState.DELETED]);
  left.abort();
  await client.deleteApp({ app: "here-before" });
});

test("a list survives a host that is away and does not pretend to know", async () => {
  const client = gateway.client();
  const { vmIds } = await deployAndWait(client, { app: "listed" });
  around.metald.before = (method) => {
    if (method === "getVm") throw unavailable();
  };
  const { vms } = await client.listVms({ app: "listed" });
  assert.deepEqual(
    vms.map(({ vmId, state }) => [vmId, state]),
    [[vmIds[0], VmState.UNSPECIFIED]],
  );
  assert.equal((await refusal(client.getVm({ vmId: vmIds[0]! }))).code, Code.Unavailable);
  around.metald.before = () => undefined;
  await client.deleteApp({ app: "listed" });
});

test("pages are passed through to their end", async () => {
  const client = gateway.client();
  for (const app of ["page-a", "page-b", "page-c"]) await deployAndWait(client, { app });
  const names: string[] = [];
  let pageToken = "";
  do {
    const page = await client.listApps({ pageSize: 2, pageToken });
    names.push(...page.apps.map(({ name }) => name));
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  assert.deepEqual(
    names.filter((name) => name.startsWith("page-")),
    ["page-a", "page-b", "page-c"],
  );
  assert.deepEqual(names, names.toSorted());
  for (const app of ["page-a", "page-b", "page-c"]) await client.deleteApp({ app });
});

test("without any host a deployment waits, and fails by name", async () => {
  const client = gateway.client();
  await around.stopFake("metald");
  const deployment = await deployAndWait(client, { app: "hostless" });
  assert.equal(deployment.failure?.reason, "HOST_UNREACHABLE");
  assert.equal(deployment.failure?.step, "place");
  const { daemon } = gateway;
  // A report is good for a second, and so is what a host answered.
  await eventually("health says that the host is silent", async () => {
    const { dependencies } = await daemon.health.report();
    return dependencies["metald"]?.ok === false;
  });
  await around.startFake("metald");
  await eventually("the host answers again", async () => (await client.getPlatform({})).hosts.length === 1);
});

test("a builder that comes back within patience is waited for; one that stays away fails the build step", async () => {
  const client = gateway.client();
  await around.stopFake("builderd");
  const failed = await deployAndWait(client, { app: "builderless" });
  assert.equal(failed.failure?.reason, "DEPENDENCY_UNAVAILABLE");
  assert.equal(failed.failure?.step, "build");
  await around.startFake("builderd");
  const done = await deployAndWait(client, { app: "builderless" });
  assert.equal(done.state, DeploymentState.SUCCEEDED, done.failure?.message ?? "");
  await client.deleteApp({ app: "builderless" });
});
