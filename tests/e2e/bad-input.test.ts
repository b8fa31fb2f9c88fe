import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { exportLayoutArchive } from "@unkey/oci";
import {
  type HelloImageOptions,
  helloImage,
  needsRegistry,
  pushLayout,
  startTestRegistry,
  type TestRegistry,
  testLogin,
} from "@unkey/oci/testing";
import { Authority, ensureIdentity, loadIdentity } from "@unkey/pki";
import { type Platform, startPlatform, until } from "@unkey/testkit";
import { type Footprint, footprint } from "./harness/footprint.ts";
import { leftovers, skipReason } from "./harness/host.ts";
import { type Credentials, exchangePlainly, grpcEnvelope, post } from "./harness/internal-port.ts";
import {
  type Answer,
  callApi,
  type DeploymentJson,
  deployAndWait,
  getJson,
  type ProblemJson,
  runCli,
  visit,
} from "./harness/public-api.ts";

/**
 * One platform that serves one release of one app. Each test asks it for something that cannot be done; after each the
 * same release serves on, and the host and the databases hold what they held before.
 */
const skip = skipReason || needsRegistry;
const app = "site";
const wrongPassword = "wr0ng-horse-battery";
/** Room for the release that serves and the one that is to replace it. */
const env = { UNKEY_METALD_MEMORY_CAPACITY: "1GiB" };
const guestDir = join(import.meta.dirname, "../../node_modules/.cache/unkey-guest");

let scratch: string;
let platform: Platform;
let registry: TestRegistry;
let instance: string;
let served: { readonly url: string; readonly deploymentId: string; readonly vmIds: readonly string[] };
let baseline: Footprint;
let room: Awaited<ReturnType<typeof roomTaken>>;
const logLines: string[] = [];
const stack = new AsyncDisposableStack();

before(async () => {
  if (skip) return;
  scratch = await mkdtemp(join(tmpdir(), "unkey-bad-input-"));
  stack.defer(() => rm(scratch, { recursive: true, force: true }));
  registry = stack.use(await startTestRegistry({ login: true }));
  platform = stack.use(await startPlatform({ guestDir, env, log: (line) => logLines.push(line) }));
  instance = /"instance":"([^"]+)"/.exec(logLines.join(""))?.[1] ?? "";
  assert.notEqual(instance, "", "metald names its instance");
  const image = await pushed("good", { text: "release one\n" });
  const deployment = await deployAndWait(platform, { app, image, credentials: testLogin });
  assert.equal(deployment.state, "DEPLOYMENT_STATE_SUCCEEDED", JSON.stringify(deployment.failure));
  served = await appNow();
  assert.deepEqual(served.vmIds, deployment.vmIds);
  baseline = footprint(platform.home, instance);
  room = await roomTaken();
  // What is looked for is found while a VM runs; what only work under way makes is gone when it is done.
  for (const kind of ["processes", "netns", "links", "cgroups", "mounts", "staged", "leases", "vms"]) {
    assert.notEqual(baseline[kind]?.length ?? 0, 0, kind);
  }
  for (const kind of ["builds", "uploads", "incoming", "reservations"]) assert.deepEqual(baseline[kind], [], kind);
});

after(async () => {
  await stack.disposeAsync();
  if (skip) return;
  assert.deepEqual(leftovers(instance, platform.home), [], "nothing may stay behind on the host");
  const log = logLines.join("");
  for (const secret of [testLogin.password, wrongPassword, platform.apiKey]) {
    assert.ok(!log.includes(secret), "no secret stands in a log");
  }
});

afterEach(async () => {
  if (skip) return;
  assert.deepEqual(await appNow(), served);
  assert.equal((await visit(platform, served.url)).body, "release one\n");
});

const failingBuilds: {
  readonly title: string;
  readonly image: () => Promise<object>;
  readonly credentials?: object;
  readonly reason: string;
  readonly message: RegExp;
}[] = [
  {
    title: "an unknown image",
    image: async () => ({ reference: `${registry.host}/nobody:1` }),
    reason: "IMAGE_NOT_FOUND",
    message: /\/nobody:1 is not in the registry/,
  },
  {
    title: "a blob that does not match its digest",
    image: async () => {
      const image = await pushed("damaged", { text: "damaged\n" });
      const stored = registry.blobPath(await layerOf("damaged"));
      const bytes = await readFile(stored);
      bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
      await writeFile(stored, bytes);
      return image;
    },
    reason: "IMAGE_DIGEST_MISMATCH",
    message: /the layer of .* sha256:[0-9a-f]+ has the digest sha256:[0-9a-f]+/,
  },
  {
    title: "an image for another architecture",
    image: () => pushed("foreign", { platform: { os: "linux", architecture: "s390x", variant: "" } }),
    reason: "IMAGE_PLATFORM_UNAVAILABLE",
    message: /is for linux\/s390x; this platform runs linux\/(amd64|arm64)/,
  },
  {
    title: "an image without a command",
    image: () => pushed("mute", { config: { Entrypoint: [] } }),
    reason: "IMAGE_NO_COMMAND",
    message: /has neither ENTRYPOINT nor CMD, and no command was given/,
  },
  {
    title: "a wrong registry password",
    image: async () => ({ reference: `${registry.host}/good:1` }),
    credentials: { username: testLogin.username, password: wrongPassword },
    reason: "REGISTRY_CREDENTIALS_REJECTED",
    message: /refuses the user name or password/,
  },
];

for (const { title, image, credentials = testLogin, reason, message } of failingBuilds) {
  test(`${title} fails the build and nothing is begun after it`, { skip }, async () => {
    const deployment = await failingDeployment({ image: await image(), credentials });
    assertFailure(deployment, { step: "build", reason, message });
    assert.deepEqual(deployment.vmIds, []);
  });
}

test("the command line shows a wrong registry password without the password", { skip }, async () => {
  const words = ["deploy", `${registry.host}/good:1`, "--app", app, "--registry-user", testLogin.username];
  const { exitCode, out, err } = await runCli(platform, words, { UNKEY_REGISTRY_PASSWORD: wrongPassword });
  assert.equal(exitCode, 1, out + err);
  assert.match(err, /^error: build failed: the registry .* refuses the user name or password$/m);
  assert.match(err, /^next: +Correct --registry-user or the password in UNKEY_REGISTRY_PASSWORD\.$/m);
  assert.ok(!(out + err).includes(wrongPassword));
  await assertNothingLeft();
});

test("a local image for another architecture is uploaded, refused and gone", { skip }, async () => {
  const layout = join(scratch, "foreign-layout");
  await helloImage({ directory: layout, platform: { os: "linux", architecture: "s390x", variant: "" } });
  const { exitCode, out, err } = await runCli(platform, ["deploy", layout, "--app", app]);
  assert.equal(exitCode, 1, out + err);
  assert.match(out, /✓ upload/);
  assert.match(err, /^error: build failed: .* is for linux\/s390x; this platform runs linux\//m);
  assert.match(err, /^next: +Build and push the image for the platform that the message names\.$/m);
  await assertNothingLeft();
});

test("an upload whose blob does not match its digest is refused while it arrives", { skip }, async () => {
  const layout = join(scratch, "tampered");
  await helloImage({ directory: layout, text: "honest\n" });
  const chunks: Uint8Array[] = [];
  for await (const chunk of exportLayoutArchive(layout)) chunks.push(chunk);
  const archive = Buffer.concat(chunks);
  archive[archive.indexOf("honest\n")] = "H".charCodeAt(0);
  const tampered = await upload(archive);
  assertProblem(tampered, 400, "IMAGE_DIGEST_MISMATCH", /blob sha256:[0-9a-f]+ has the digest sha256:[0-9a-f]+/);
  const cut = await upload(archive.subarray(0, archive.length >> 1));
  assertProblem(cut, 400, "IMAGE_ARCHIVE_INVALID", /ends/);
  const nonsense = await upload(Buffer.alloc(4096, "no archive"));
  assertProblem(nonsense, 400, "IMAGE_ARCHIVE_INVALID", /the image archive/);
  await assertNothingLeft();
});

test("an app that exits at once: its exit code and last lines, in the terminal and over REST", { skip }, async () => {
  const script = "echo starting up; echo 'no database: giving up' >&2; exit 3";
  const { reference } = await pushed("exits", { config: { Entrypoint: ["/bin/sh", "-c", script] } });
  const words = ["deploy", reference, "--app", app, "--registry-user", testLogin.username];
  const { exitCode, out, err } = await runCli(platform, words, { UNKEY_REGISTRY_PASSWORD: testLogin.password });
  assert.equal(exitCode, 1, out + err);
  assert.match(out, /✓ boot/);
  assert.match(out, /✗ health/);
  assert.match(err, /^error: health failed: the app ended before it served: exit code 3$/m);
  assert.match(err, /^ +\| starting up$\n^ +\| no database: giving up$/m);
  assert.match(err, /^next: +Read the app's last lines, correct it and deploy again\.$/m);
  await assertNothingLeft();

  const { deployments } = await getJson<{ deployments: DeploymentJson[] }>(
    platform,
    `/v1/deployments?app=${app}&pageSize=1`,
  );
  const [deployment] = deployments;
  assert.ok(deployment);
  assertFailure(deployment, { step: "health", reason: "APP_EXITED", message: /exit code 3/ });
  assert.equal(deployment.failure?.exit?.code, 3);
  assert.deepEqual(deployment.failure.lastLines, ["starting up", "no database: giving up"]);
});

test("an app that never listens fails at its health deadline, and the old release serves all the while", {
  skip,
}, async () => {
  const script = "echo listening to nobody; exec sleep 600";
  const image = await pushed("silent", { config: { Entrypoint: ["/bin/sh", "-c", script] } });
  const ended = new AbortController();
  const answers: number[] = [];
  const visits = (async () => {
    while (!ended.signal.aborted) {
      answers.push((await visit(platform, served.url)).status);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  })();
  const request = { image, credentials: testLogin, port: 9123, healthCheck: { deadlineMs: 1500 } };
  const deployment = await failingDeployment(request).finally(() => ended.abort());
  await visits;
  const message = /^nothing listened on port 9123 within 1\.5 s: the connection was refused$/;
  assertFailure(deployment, { step: "health", reason: "APP_NOT_LISTENING", message });
  assert.deepEqual(deployment.failure?.lastLines, ["listening to nobody"]);
  assert.deepEqual(new Set(answers), new Set([200]));

  const shown = await runCli(platform, ["deployments", "show", deployment.deploymentId]);
  assert.equal(shown.exitCode, 0, shown.err);
  assert.match(shown.out, /nothing listened on port 9123/);
  assert.match(shown.out, /listening to nobody/);
});

test("what a deployment cannot ask for is refused before there is one", { skip }, async () => {
  const image = { reference: `${registry.host}/good:1` };
  const resources = { vcpuCount: 1, memoryBytes: 2 ** 31, diskBytes: 2 ** 30 };
  const before = await deploymentCount();
  const refused = async (body: Readonly<Record<string, unknown>>, ...expected: [number, string, RegExp]) =>
    assertProblem(await callApi(platform, "POST", "/v1/deployments", { body: { app, image, ...body } }), ...expected);
  await refused({ port: 65_536 }, 400, "INVALID_REQUEST", /^port: must be less than or equal to 65535/);
  await refused({ port: -1 }, 400, "MALFORMED_MESSAGE", /^port: .*out of range/);
  await refused({ port: "http" }, 400, "MALFORMED_MESSAGE", /^port: expected number/);
  const tooMuch = /2 GiB of memory .* the largest host has .* 1 GiB of memory/;
  await refused({ resources }, 409, "EXCEEDS_HOSTS", tooMuch);
  await refused({ resources: { ...resources, vcpuCount: 33 } }, 400, "INVALID_REQUEST", /^resources\.vcpu_count: /);

  const connect = await overConnect(JSON.stringify({ app, image, resources }), "application/json");
  assert.equal(connect.status, 400);
  assertWireError(connect.body, "failed_precondition", "EXCEEDS_HOSTS", tooMuch);

  const port = await runCli(platform, ["deploy", image.reference, "--app", app, "--port", "65536"]);
  assert.equal(port.exitCode, 2);
  assert.match(port.err, /^error: --port: "65536" is not a whole number from 1 to 65535$\n^next: /m);
  const large = await runCli(platform, ["deploy", image.reference, "--app", app, "--memory", "2GiB"]);
  assert.equal(large.exitCode, 1, large.err);
  assert.match(large.err, new RegExp(`^error: each VM would need .*${tooMuch.source}.*$\\n^next: `, "m"));
  assert.equal(await deploymentCount(), before);
  await assertNothingLeft();
});

test("an idempotency key stands for one body", { skip }, async () => {
  const headers = { "idempotency-key": "bad-input-1" };
  const body = { app, image: { reference: `${registry.host}/nobody:1` }, credentials: testLogin };
  const count = await deploymentCount();
  const first = await callApi(platform, "POST", "/v1/deployments", { body, headers });
  assert.equal(first.status, 202, first.body);
  const { deploymentId } = JSON.parse(first.body) as DeploymentJson;
  const again = await callApi(platform, "POST", "/deploy", { body, headers });
  assert.equal((JSON.parse(again.body) as DeploymentJson).deploymentId, deploymentId);
  const other = await callApi(platform, "POST", "/v1/deployments", { body: { ...body, port: 81 }, headers });
  assertProblem(other, 422, "IDEMPOTENCY_KEY_REUSED", new RegExp(deploymentId));
  const connect = await overConnect(JSON.stringify({ ...body, app: "other" }), "application/json", headers);
  assert.equal(connect.status, 409);
  assertWireError(connect.body, "already_exists", "IDEMPOTENCY_KEY_REUSED", new RegExp(deploymentId));
  await callApi(platform, "GET", `/v1/deployments/${deploymentId}/watch`); // to its end
  assert.equal(await deploymentCount(), count + 1);
  await assertNothingLeft();
});

test("malformed JSON and protobuf are refused over every protocol, without quoting what was sent", {
  skip,
}, async () => {
  const count = await deploymentCount();
  const texts: [string, RegExp][] = [
    [`{"app": "${app}",, "credentials": {"password": "${wrongPassword}"}}`, /not JSON at byte 15$/],
    [`{"credentials": {"password": ${wrongPassword}}}`, /^the body is not JSON/],
    [`{"credentials": {"password": ["${wrongPassword}"]}}`, /^password: expected string$/],
    [`{"port": "${wrongPassword}"}`, /^port: expected number \(uint32\)$/],
    ['{"app": ', /^the body ends before its JSON does$/],
  ];
  for (const [raw, detail] of texts) {
    const rest = await callApi(platform, "POST", "/v1/deployments", { raw });
    assertProblem(rest, 400, "MALFORMED_MESSAGE", detail);
    const connect = await overConnect(raw, "application/json");
    assert.equal(connect.status, 400);
    assertWireError(connect.body, "invalid_argument", "MALFORMED_MESSAGE", detail);
    assert.ok(!(rest.body + connect.body).includes(wrongPassword));
  }
  const junk = Buffer.from([0xff, 0xff, 0xff, 0xff]);
  const binary = await overConnect(junk, "application/proto");
  assert.equal(binary.status, 400);
  assertWireError(binary.body, "invalid_argument", "MALFORMED_MESSAGE", /not a protobuf message/);
  const grpc = await overConnect(grpcEnvelope(junk), "application/grpc", { te: "trailers" });
  assert.equal(grpc.trailers["grpc-status"], "3", "INVALID_ARGUMENT");
  const status = Buffer.from(grpc.trailers["grpc-status-details-bin"] ?? "", "base64").toString();
  assert.match(status, /not a protobuf message.*MALFORMED_MESSAGE.*Send a body that the RPC's schema allows/s);
  assert.equal(await deploymentCount(), count);
  await assertNothingLeft();
});

/** A method of each internal service, to be called as gatewayd or metald would. */
const internal = {
  assetmanagerd: "/unkey.asset.v1.AssetService/GetAsset",
  builderd: "/unkey.builder.v1.BuilderService/GetBuild",
  metald: "/unkey.metal.v1.MetalService/GetHost",
  billaged: "/unkey.metering.v1.MeteringService/StreamSamples",
  "billing-aggregator": "/unkey.billing.v1.BillingService/QueryUsage",
} as const;
const services = Object.keys(internal) as (keyof typeof internal)[];

test("a plaintext connection to an internal port hears that it speaks TLS", { skip }, async () => {
  for (const name of services) {
    const request = `POST ${internal[name]} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n`;
    const [head = "", body = ""] = (await exchangePlainly(portOf(name), request)).toString().split("\r\n\r\n");
    assert.match(head, /^HTTP\/1\.1 400 Bad Request\r\n/, name);
    const error = JSON.parse(body) as Record<string, string>;
    assert.deepEqual([error["code"], error["reason"]], ["failed_precondition", "TLS_REQUIRED"], name);
    assert.match(error["message"] ?? "", /speaks TLS 1\.3 with client certificates/, name);
    assert.match(error["nextStep"] ?? "", /https/, name);
    const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert.match((await exchangePlainly(portOf(name), preface)).toString("latin1"), /speaks TLS 1\.3/, name);
  }
  await assertNothingLeft();
});

test("a client certificate of another authority is refused, and so is none, whatever it names", { skip }, async () => {
  const other = Authority.open(join(scratch, "other-authority"), { commonName: "Unkey Deploy services" });
  const { caPem, id } = loadIdentity(join(platform.home, "pki/identities/gatewayd"));
  const directory = join(scratch, "stranger");
  ensureIdentity(other, directory, { id });
  const stranger = loadIdentity(directory);
  for (const name of services) {
    const call = (credentials: Credentials) =>
      post({
        port: portOf(name),
        credentials,
        path: internal[name],
        headers: { "content-type": "application/proto" },
        body: Buffer.alloc(0),
      });
    const foreign = await call({ ca: caPem, cert: stranger.certPem, key: stranger.keyPem });
    assert.equal(foreign.status, 401, name);
    assertWireError(foreign.body, "unauthenticated", "CLIENT_CERTIFICATE_REFUSED", /issued by another authority/);
    const none = await call({ ca: caPem });
    assert.equal(none.status, 401, name);
    assertWireError(none.body, "unauthenticated", "CLIENT_CERTIFICATE_REFUSED", /presented no certificate/);
  }
  await assertNothingLeft();
});

test("malformed protobuf on an internal port is the sender's mistake", { skip }, async () => {
  const { caPem, certPem, keyPem } = loadIdentity(join(platform.home, "pki/identities/gatewayd"));
  const answer = await post({
    port: portOf("metald"),
    credentials: { ca: caPem, cert: certPem, key: keyPem },
    path: internal.metald,
    headers: { "content-type": "application/proto" },
    body: Buffer.from([0xff, 0xff, 0xff, 0xff]),
  });
  assert.equal(answer.status, 400);
  assertWireError(answer.body, "invalid_argument", "MALFORMED_MESSAGE", /not a protobuf message/);
});

/** Puts an image into the registry, as `<name>:1`. */
async function pushed(name: string, options: Omit<HelloImageOptions, "directory">): Promise<{ reference: string }> {
  const layout = join(scratch, name);
  await helloImage({ ...options, directory: layout });
  await pushLayout({ layout, host: registry.host, repository: name, tag: "1", login: testLogin });
  return { reference: `${registry.host}/${name}:1` };
}

/** The digest of the one layer of an image that was pushed. */
async function layerOf(name: string): Promise<string> {
  const read = async (path: string) => JSON.parse(await readFile(join(scratch, name, path), "utf8")) as unknown;
  const { manifests } = (await read("index.json")) as { manifests: { digest: string }[] };
  const { layers } = (await read(`blobs/${manifests[0]?.digest.replace(":", "/")}`)) as {
    layers: { digest: string }[];
  };
  return layers[0]?.digest ?? "";
}

/** Deploys to the app that serves, and checks that the failure undid everything before it was told. */
async function failingDeployment(body: Readonly<Record<string, unknown>>): Promise<DeploymentJson> {
  const deployment = await deployAndWait(platform, { app, ...body });
  await assertNothingLeft();
  return deployment;
}

/** What serves, as anybody who looks at the app sees it. */
async function appNow() {
  const { url, deploymentId, vmIds, state } = await getJson<typeof served & { state: string }>(
    platform,
    `/v1/apps/${app}`,
  );
  assert.equal(state, "APP_STATE_SERVING");
  return { url, deploymentId, vmIds };
}

/** Everything is as it was when the release came to serve. Uploads go a moment after their build has ended. */
async function assertNothingLeft(): Promise<void> {
  const uploads = () => footprint(platform.home, instance)["uploads"] ?? [];
  await until("uploads are removed", async () => uploads().length === 0);
  assert.deepEqual(footprint(platform.home, instance), baseline);
  assert.deepEqual(await roomTaken(), room);
}

/** What the host has given away, reservations included, as GetPlatform shows it. */
async function roomTaken() {
  const { hosts } = await getJson<{ hosts: { allocated: object; vmCount: number }[] }>(platform, "/v1/platform");
  return hosts.map(({ allocated, vmCount }) => ({ allocated, vmCount }));
}

async function deploymentCount(): Promise<number> {
  return (await getJson<{ deployments: unknown[] }>(platform, "/v1/deployments?pageSize=1000")).deployments.length;
}

function upload(raw: Uint8Array): Promise<Answer> {
  return callApi(platform, "POST", "/v1/uploads", { raw, headers: { "content-type": "application/x-tar" } });
}

/** A call of CreateDeployment by the RPC's own name. */
function overConnect(body: string | Uint8Array, contentType: string, headers: Readonly<Record<string, string>> = {}) {
  return post({
    port: Number(new URL(platform.apiUrl).port),
    credentials: { ca: platform.caPem },
    path: "/unkey.gateway.v1.GatewayService/CreateDeployment",
    headers: { authorization: `Bearer ${platform.apiKey}`, "content-type": contentType, ...headers },
    body: Buffer.from(body),
  });
}

function portOf(name: (typeof services)[number]): number {
  return Number(platform.daemon(name).addresses.get("rpc")?.split(":").at(-1));
}

function assertFailure(
  { state, steps, failure }: DeploymentJson,
  expected: { readonly step: string; readonly reason: string; readonly message: RegExp },
): void {
  assert.equal(state, "DEPLOYMENT_STATE_FAILED");
  assert.ok(failure);
  assert.deepEqual([failure.step, failure.reason], [expected.step, expected.reason], failure.message);
  assert.match(failure.message, expected.message);
  assert.match(failure.nextStep, /^[A-Z].*\.?$/);
  const at = steps.findIndex(({ kind }) => kind === expected.step);
  for (const [index, step] of steps.entries()) {
    const wanted = index < at ? "UNDONE" : index === at ? "FAILED" : "SKIPPED";
    assert.equal(step.state, `STEP_STATE_${wanted}`, step.kind);
  }
}

function assertProblem({ status, headers, body }: Answer, expected: number, reason: string, detail: RegExp): void {
  assert.equal(status, expected, body);
  assert.equal(headers["content-type"], "application/problem+json");
  const problem = JSON.parse(body) as ProblemJson;
  assert.deepEqual([problem.status, problem.reason, problem.type], [expected, reason, `urn:unkey:error:${reason}`]);
  assert.match(problem.detail, detail);
  assert.notEqual(problem.title, "");
  assert.match(problem.nextStep, /^[A-Z].*\.?$/);
  assert.equal(problem.requestId, headers["x-request-id"]);
}

/** An error as Connect writes it: https://connectrpc.com/docs/protocol#error-end-stream. */
function assertWireError(body: string, code: string, reason: string, message: RegExp): void {
  const error = JSON.parse(body) as {
    code: string;
    message: string;
    details: { debug: { reason: string; nextStep: string } }[];
  };
  assert.deepEqual([error.code, error.details[0]?.debug.reason], [code, reason], body);
  assert.match(error.message, message);
  assert.notEqual(error.details[0]?.debug.nextStep, "");
}
