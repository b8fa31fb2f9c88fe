import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { ConnectError } from "@connectrpc/connect";
import { AssetState } from "@unkey/api/asset";
import { BuildState } from "@unkey/api/builder";
import { DeploymentState } from "@unkey/api/gateway";
import { untilTerminal } from "./harness/deploying.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { rest } from "./harness/rest.ts";
import { digestOf, image, RegistryApi } from "./registry/client.ts";
import { created, deleted, pushAll } from "./registry/conformance.contract.ts";
import { targetOf } from "./registry/targets.ts";

let around: Surroundings;
let gateway: Gateway;
let api: RegistryApi;

before(async () => {
  around = await surroundings();
  gateway = await around.start({ REGISTRY_GRACE: "1s", REGISTRY_UNTAGGED: "1s", REGISTRY_SWEEP: "200ms" });
  api = new RegistryApi(targetOf(gateway));
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});

async function push(repository: string, tag: string) {
  const one = image();
  await pushAll(api, repository, [one.config, ...one.layers]);
  created(await api.pushManifest(repository, tag, one));
  return one;
}

/** Asks for a deployment and answers what the builder was asked for. */
async function deployed(reference: string, more: Readonly<Record<string, unknown>> = {}) {
  const client = gateway.client();
  const { deploymentId } = await client.createDeployment({
    image: { source: { case: "reference", value: reference } },
    ...more,
  });
  const deployment = await untilTerminal(client, deploymentId);
  assert.equal(deployment.state, DeploymentState.SUCCEEDED, deployment.failure?.message ?? "");
  const asked = [...around.builderd.builds.values()].find(({ request }) => request.idempotencyKey === deploymentId);
  return { deployment, source: asked?.request.image?.source, credentials: asked?.request.credentials };
}

const host = () => `localhost:${new URL(gateway.apiOrigin).port}`;

test("a bare name means what was pushed under it, by the digest that its tag had when it was asked for", async () => {
  const one = await push("my-app", "latest");
  const { deployment, source } = await deployed("my-app:latest");
  assert.equal(source?.case, "pushed");
  assert.equal(source?.case === "pushed" && source.value.repository, "my-app");
  assert.equal(source?.case === "pushed" && source.value.tagOrDigest, one.digest);
  assert.equal(deployment.app, "my-app");
  assert.equal(deployment.image, "my-app:latest");
  assert.equal(deployment.pushedImage, `my-app@${one.digest}`);
});

test("without a tag it means latest; with a digest exactly that", async () => {
  const one = await push("team/plain", "latest");
  assert.equal((await deployed("team/plain", { app: "plain" })).deployment.pushedImage, `team/plain@${one.digest}`);
  const two = await push("team/plain", "latest");
  const pinned = await deployed(`team/plain:latest@${one.digest}`, { app: "plain" });
  assert.equal(pinned.deployment.pushedImage, `team/plain@${one.digest}`);
  assert.equal((await deployed("team/plain", { app: "plain" })).deployment.pushedImage, `team/plain@${two.digest}`);
});

test("the gateway's own host means what was pushed, and nothing else", async () => {
  const one = await push("own", "v1");
  for (const name of [host(), host().replace("localhost", "127.0.0.1")]) {
    const { deployment } = await deployed(`${name}/own:v1`, { app: "own" });
    assert.equal(deployment.pushedImage, `own@${one.digest}`);
    assert.equal(deployment.image, `${name}/own:v1`);
  }
  const answer = await rest(gateway, "POST", "/v1/deployments", { body: { image: { reference: `${host()}/own:v2` } } });
  assert.equal(answer.status, 404);
  assert.equal(answer.json["reason"], "IMAGE_NOT_FOUND");
  assert.match(String(answer.json["nextStep"]), /push-an-image/);
});

test("every other reference means what it means without a registry of our own", async () => {
  await push("taken", "v1");
  for (const reference of ["never-pushed:v1", "localhost:5000/taken:v1", "docker.io/library/taken:v1"]) {
    const { deployment, source } = await deployed(reference, { app: "taken" });
    assert.equal(source?.case, "reference", reference);
    assert.equal(source?.value, reference);
    assert.equal(deployment.pushedImage, "");
  }
  const login = { username: "u", password: "p" };
  const { source, credentials } = await deployed("taken:v1", { app: "taken", credentials: login });
  assert.equal(source?.case, "reference", "a login says that a registry is meant");
  assert.equal(credentials?.username, "u");
});

test("a tag that is not there of a name that is ours is refused: nobody else's image of the name is meant", async () => {
  await push("typed", "v1");
  await assert.rejects(deployed("typed:v2", { app: "typed" }), /typed:v2 was not pushed to the platform/);
});

test("a pushed image may be named as such", async () => {
  const one = await push("named", "v1");
  const client = gateway.client();
  const source = { case: "pushed", value: { repository: "named", tagOrDigest: "v1" } } as const;
  const { deploymentId, image: asked } = await client.createDeployment({ image: { source } });
  assert.equal(asked, "named:v1");
  assert.equal((await untilTerminal(client, deploymentId)).pushedImage, `named@${one.digest}`);
  const missing = { case: "pushed", value: { repository: "named", tagOrDigest: "v9" } } as const;
  await assert.rejects(client.createDeployment({ image: { source: missing } }), ConnectError);
});

test("a repeat of the request is the first deployment, even when the tag has moved or is gone", async () => {
  const one = await push("repeat", "v1");
  const headers = { "idempotency-key": "the-same" };
  const ask = () =>
    gateway
      .client()
      .createDeployment({ image: { source: { case: "reference", value: `${host()}/repeat:v1` } } }, { headers });
  const first = await ask();
  await untilTerminal(gateway.client(), first.deploymentId);
  await push("repeat", "v1");
  assert.equal((await ask()).deploymentId, first.deploymentId);
  deleted(await api.manifest("DELETE", "repeat", "v1"));
  const again = await ask();
  assert.equal(again.deploymentId, first.deploymentId);
  assert.equal(again.pushedImage, `repeat@${one.digest}`);
});

test("while it is built from, an image stays in the store, whatever is deleted", async () => {
  const one = await push("building", "v1");
  const parts = [one.digest, digestOf(one.config), ...one.layers.map((layer) => digestOf(layer))];
  const stored = () =>
    [...around.assetmanagerd.held.values()]
      .filter(({ asset }) => asset.state === AssetState.AVAILABLE && parts.includes(asset.digest))
      .map(({ asset }) => asset.digest)
      .toSorted();
  const goOn = Promise.withResolvers<void>();
  const began = Promise.withResolvers<void>();
  around.builderd.finish = async (build) => {
    began.resolve();
    await goOn.promise;
    build.state = BuildState.COMPLETED;
  };
  const client = gateway.client();
  const { deploymentId } = await client.createDeployment({
    image: { source: { case: "reference", value: "building:v1" } },
  });
  await began.promise;
  deleted(await api.manifest("DELETE", "building", one.digest));
  // Some sweeps after everything that nothing refers to is older than its grace.
  const sweep = () => new Promise((resolve) => setTimeout(resolve, 1500));
  await sweep();
  assert.deepEqual(stored(), parts.toSorted());
  goOn.resolve();
  await untilTerminal(client, deploymentId);
  for (let i = 0; i < 30 && stored().length > 0; i++) await sweep();
  assert.deepEqual(stored(), []);
});
