import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Code, type ConnectError } from "@connectrpc/connect";
import { BuildFailureSchema, BuildState } from "@unkey/api/builder";
import { ErrorInfoSchema } from "@unkey/api/common";
import { type Deployment, DeploymentState, StepState } from "@unkey/api/gateway";
import { VmState } from "@unkey/api/metal";
import { gib, ServiceError } from "@unkey/base";
import { deployAndWait, helloImage, untilTerminal } from "./harness/deploying.ts";
import { unavailable } from "./harness/fake-metald.ts";
import { ask } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { exitingProgram, helloProgram, httpProgram, silentProgram } from "./harness/programs.ts";

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
  const { metald, builderd } = around;
  metald.run = helloProgram("hello");
  metald.before = metald.after = () => undefined;
  builderd.before = builderd.after = () => undefined;
  builderd.finish = (build) => void (build.state = BuildState.COMPLETED);
});

const resources = { vcpuCount: 1, memoryBytes: BigInt(gib / 4), diskBytes: BigInt(gib) };

/** Asserts the shape of every failed deployment: the step that failed, the others undone, no VM left. */
function assertFailed(deployment: Deployment, step: string, reason: string): void {
  assert.equal(deployment.state, DeploymentState.FAILED);
  assert.equal(deployment.failure?.step, step, deployment.failure?.message ?? "no failure");
  assert.equal(deployment.failure?.reason, reason, deployment.failure?.message);
  assert.notEqual(deployment.failure?.nextStep, "");
  assert.ok(deployment.endedAtMs > 0n);
  const at = deployment.steps.findIndex((each) => each.kind === step);
  for (const [index, each] of deployment.steps.entries()) {
    const expected = index < at ? StepState.UNDONE : index === at ? StepState.FAILED : StepState.SKIPPED;
    assert.equal(each.state, expected, `${each.kind} is ${each.state}`);
  }
  for (const vmId of deployment.vmIds) {
    const state = around.metald.vms.get(vmId)?.vm.state;
    assert.ok(state === undefined || state === VmState.DELETED, `${vmId} is left behind in state ${state}`);
  }
}

test("a failed build says why in the builder's words", async () => {
  around.builderd.finish = (build) => {
    build.state = BuildState.FAILED;
    build.failure = create(BuildFailureSchema, {
      reason: "IMAGE_NOT_FOUND",
      message: "no such image",
      nextStep: "Check the name.",
    });
  };
  const deployment = await deployAndWait(gateway.client(), { app: "unknown-image" });
  assertFailed(deployment, "build", "IMAGE_NOT_FOUND");
  assert.equal(deployment.failure?.message, "no such image");
  assert.equal(deployment.failure?.nextStep, "Check the name.");
});

test("a reason of another release is passed on as it is", async () => {
  around.builderd.finish = (build) => {
    build.state = BuildState.FAILED;
    build.failure = create(BuildFailureSchema, { reason: "IMAGE_CURSED", message: "cursed", nextStep: "Pray." });
  };
  const deployment = await deployAndWait(gateway.client(), { app: "cursed" });
  assertFailed(deployment, "build", "IMAGE_CURSED");
});

test("an image without a command fails by name", async () => {
  around.builderd.finish = (build) => {
    build.state = BuildState.COMPLETED;
    build.process!.argv = [];
  };
  assertFailed(await deployAndWait(gateway.client(), { app: "mute" }), "build", "IMAGE_NO_COMMAND");
  const given = await deployAndWait(gateway.client(), { app: "mute", argv: ["/bin/app"] });
  assert.equal(given.state, DeploymentState.SUCCEEDED, JSON.stringify(given.failure));
});

test("memory larger than the host is refused with the host's capacity", async () => {
  await assert.rejects(
    gateway
      .client()
      .createDeployment({ app: "huge", image: helloImage, resources: { ...resources, memoryBytes: BigInt(64 * gib) } }),
    (error: ConnectError) => {
      assert.equal(error.code, Code.FailedPrecondition);
      assert.equal(error.findDetails(ErrorInfoSchema)[0]?.reason, "EXCEEDS_HOSTS");
      assert.match(error.rawMessage, /64 GiB.*the largest host has 8 vCPU, 4 GiB/);
      return true;
    },
  );
});

test("a full host fails the deployment with what it needed", async () => {
  const client = gateway.client();
  const big = await deployAndWait(client, { app: "big", resources: { ...resources, memoryBytes: BigInt(3 * gib) } });
  assert.equal(big.state, DeploymentState.SUCCEEDED);
  const second = await deployAndWait(client, {
    app: "bigger",
    resources: { ...resources, memoryBytes: BigInt(3 * gib) },
  });
  assertFailed(second, "place", "HOSTS_FULL");
  assert.match(second.failure!.message, /3 GiB/);
  await client.deleteApp({ app: "big" });
});

test("an app that exits at once fails with its status and last lines", async () => {
  around.metald.run = exitingProgram(7, "starting\nno database\n");
  const deployment = await deployAndWait(gateway.client(), { app: "exits" });
  assertFailed(deployment, "health", "APP_EXITED");
  assert.deepEqual(deployment.failure?.exit?.outcome, { case: "code", value: 7 });
  assert.deepEqual(deployment.failure?.lastLines, ["starting", "no database"]);
});

test("an app that never listens fails at its deadline and names the port", async () => {
  around.metald.run = silentProgram("waiting for godot\n");
  const deployment = await deployAndWait(gateway.client(), {
    app: "silent",
    port: 9999,
    healthCheck: { deadlineMs: 200 },
  });
  assertFailed(deployment, "health", "APP_NOT_LISTENING");
  assert.match(deployment.failure!.message, /port 9999 within 0.2 s.*refused/);
  assert.match(deployment.failure!.nextStep, /--port/);
  assert.deepEqual(deployment.failure?.lastLines, ["waiting for godot"]);
});

test("an HTTP health check needs an answer below 500", async () => {
  const client = gateway.client();
  around.metald.run = httpProgram((request, response) => {
    response.statusCode = request.url === "/ready" ? 204 : 503;
    response.end();
  });
  const sick = await deployAndWait(client, { app: "sick", healthCheck: { httpPath: "/sick", deadlineMs: 200 } });
  assertFailed(sick, "health", "APP_UNHEALTHY");
  assert.match(sick.failure!.message, /status 503/);
  const well = await deployAndWait(client, { app: "sick", healthCheck: { httpPath: "/ready" } });
  assert.equal(well.state, DeploymentState.SUCCEEDED);
});

for (const [method, step] of [
  ["reserveCapacity", "place"],
  ["createVm", "create"],
  ["bootVm", "boot"],
] as const) {
  test(`a host that refuses ${method} fails the step ${step} and leaves nothing`, async () => {
    around.metald.before = (called) => {
      if (called === method) throw new ServiceError("VM_LAUNCH_FAILED", "told to fail");
    };
    assertFailed(await deployAndWait(gateway.client(), { app: `refuses-${step}` }), step, "VM_LAUNCH_FAILED");
  });

  test(`an effect of ${method} whose answer was lost is undone too`, async () => {
    around.metald.after = (called) => {
      if (called === method) throw new ServiceError("VM_LAUNCH_FAILED", "told to fail after the effect");
    };
    assertFailed(await deployAndWait(gateway.client(), { app: `late-${step}` }), step, "VM_LAUNCH_FAILED");
  });

  test(`a host that is away for a moment during ${method} is waited for`, async () => {
    let left = 3;
    around.metald.before = (called) => {
      if (called === method && left-- > 0) throw unavailable();
    };
    const deployment = await deployAndWait(gateway.client(), { app: `patient-${step}` });
    assert.equal(deployment.state, DeploymentState.SUCCEEDED, JSON.stringify(deployment.failure));
    await gateway.client().deleteApp({ app: `patient-${step}` });
  });
}

test("a build that ended because its registry was away is not waited for: asking again finds the same end", async () => {
  around.builderd.finish = async (build) => {
    build.state = BuildState.FAILED;
    build.failure = create(BuildFailureSchema, {
      reason: "REGISTRY_UNAVAILABLE",
      message: "the registry is away",
      nextStep: "Wait.",
    });
  };
  const asked = around.builderd.calls.length;
  assertFailed(await deployAndWait(gateway.client(), { app: "away" }), "build", "REGISTRY_UNAVAILABLE");
  assert.deepEqual(around.builderd.calls.slice(asked), ["buildImage", "watchBuild", "cancelBuild"]);
});

test("a failed release leaves the one before serving", async () => {
  const client = gateway.client();
  const good = await deployAndWait(client, { app: "steady" });
  around.metald.run = exitingProgram(1, "broken\n");
  assertFailed(await deployAndWait(client, { app: "steady" }), "health", "APP_EXITED");
  const answer = await ask({ port: gateway.ingressPort, ca: gateway.ca, host: "steady.localhost" });
  assert.equal(answer.status, 200);
  assert.equal((await client.getApp({ app: "steady" })).deploymentId, good.deploymentId);
  await client.deleteApp({ app: "steady" });
});

test("deployments of one app run one after the other in the order they were accepted", async () => {
  const client = gateway.client();
  const gate = Promise.withResolvers<void>();
  around.builderd.finish = async (build) => {
    await gate.promise;
    build.state = BuildState.COMPLETED;
  };
  const ids: string[] = [];
  for (let i = 0; i < 3; i++)
    ids.push((await client.createDeployment({ app: "queue", image: helloImage })).deploymentId);
  const before = around.builderd.builds.size;
  const cancelled = await client.cancelDeployment({ deploymentId: ids[1]! });
  assert.equal(cancelled.state, DeploymentState.CANCELLED, "one that nobody has begun ends at once");
  gate.resolve();
  const first = await untilTerminal(client, ids[0]!);
  const last = await untilTerminal(client, ids[2]!);
  assert.deepEqual([first.state, last.state], [DeploymentState.SUCCEEDED, DeploymentState.SUCCEEDED]);
  assert.ok(first.endedAtMs <= last.steps[0]!.startedAtMs);
  assert.equal(around.builderd.builds.size, Math.max(before, 1) + 1);
  assert.equal((await client.getApp({ app: "queue" })).deploymentId, ids[2]);
  await client.deleteApp({ app: "queue" });
});

test("a deployment that is given up while it works is undone", async () => {
  const client = gateway.client();
  const booting = Promise.withResolvers<void>();
  const hung = Promise.withResolvers<void>();
  around.metald.before = async (called) => {
    if (called !== "bootVm") return;
    booting.resolve();
    await hung.promise;
  };
  const { deploymentId } = await client.createDeployment({ app: "given-up", image: helloImage });
  await booting.promise;
  await client.cancelDeployment({ deploymentId });
  const ended = await untilTerminal(client, deploymentId);
  hung.resolve();
  assert.equal(ended.state, DeploymentState.CANCELLED);
  assert.equal(ended.failure, undefined);
  assert.equal(around.metald.vms.get(ended.vmIds[0]!)?.vm.state, VmState.DELETED);
  await assert.rejects(deployed(client), /has succeeded/);
  await client.deleteApp({ app: "given-up" });

  async function deployed(api: typeof client) {
    const done = await deployAndWait(api, { app: "given-up" });
    await api.cancelDeployment({ deploymentId: done.deploymentId });
  }
});

test("when the host dies during the undoing, the deployment ends and the VM goes once the host is back", async () => {
  const client = gateway.client();
  around.metald.run = exitingProgram(3, "bye\n");
  around.metald.before = (called) => {
    if (called === "deleteVm") throw unavailable();
  };
  const deployment = await deployAndWait(client, { app: "orphan" });
  assert.equal(deployment.state, DeploymentState.FAILED);
  const vmId = deployment.vmIds[0]!;
  assert.equal(around.metald.vms.get(vmId)?.vm.state, VmState.STOPPED);
  around.metald.before = () => undefined;
  while (around.metald.vms.get(vmId)?.vm.state !== VmState.DELETED) await new Promise((r) => setTimeout(r, 50));
});

test("several VMs share an app; each is created, probed and removed", async () => {
  const client = gateway.client();
  const deployment = await deployAndWait(client, { app: "many", vmCount: 3 });
  assert.equal(deployment.state, DeploymentState.SUCCEEDED, JSON.stringify(deployment.failure));
  assert.equal(deployment.vmIds.length, 3);
  const seen = new Set<string>();
  for (let i = 0; i < 40; i++) {
    const answer = await ask({ port: gateway.ingressPort, ca: gateway.ca, host: "many.localhost" });
    seen.add(String(answer.headers["x-vm"]));
  }
  assert.deepEqual([...seen].toSorted(), deployment.vmIds.toSorted());
  await around.metald.crash(deployment.vmIds[0]!, 1);
  for (let i = 0; i < 20; i++) {
    const answer = await ask({ port: gateway.ingressPort, ca: gateway.ca, host: "many.localhost" });
    assert.equal(answer.status, 200, "a dead VM's requests go to the others");
  }
  await client.deleteApp({ app: "many" });
  assert.equal(around.metald.alive.filter((vm) => deployment.vmIds.includes(vm.vmId)).length, 0);
});

test("the login for a registry reaches the builder and nothing else", async () => {
  const client = gateway.client();
  const deployment = await deployAndWait(client, {
    app: "login",
    credentials: { username: "me", password: "s3cret-pass" },
  });
  assert.equal(deployment.state, DeploymentState.SUCCEEDED);
  const build = [...around.builderd.builds.values()].find(
    (each) => each.request.idempotencyKey === deployment.deploymentId,
  );
  assert.equal(build?.request.credentials?.password, "s3cret-pass");
  assert.ok(around.logs.every((line) => !line.includes("s3cret-pass")));
  const { readdir, readFile } = await import("node:fs/promises");
  for (const file of await readdir(around.dataDir)) {
    const bytes = await readFile(`${around.dataDir}/${file}`).catch(() => Buffer.alloc(0));
    assert.ok(!bytes.includes("s3cret-pass"), `${file} holds the password`);
  }
});
