import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { connect as tlsConnect } from "node:tls";
import { getOption } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "@unkey/api/common";
import { DeploymentState, GatewayService } from "@unkey/api/gateway";
import committedDocument from "@unkey/api/openapi.json" with { type: "json" };
import { rest as restOption } from "@unkey/api/options";
import { newId, ServiceError } from "@unkey/base";
import { deployAndWait, helloImage, untilTerminal } from "./harness/deploying.ts";
import { openH2 } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { rest } from "./harness/rest.ts";

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

async function refusal(
  promise: Promise<unknown>,
): Promise<{ code: Code; reason: string; message: string; error: ConnectError }> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof ConnectError, String(error));
    const info = error.findDetails(ErrorInfoSchema)[0];
    assert.ok(info, `no detail in ${error.message}`);
    assert.notEqual(info.nextStep, "");
    return { code: error.code, reason: info.reason, message: error.rawMessage, error };
  }
  throw new Error("it was not refused");
}

const apiPort = () => Number(new URL(gateway.apiOrigin).port);

for (const protocol of ["connect", "grpc", "grpc-web"] as const) {
  test(`${protocol} clients are served on the API port`, async () => {
    const client = gateway.client({ protocol });
    const platform = await client.getPlatform({});
    assert.equal(platform.appDomain, "localhost");
    assert.equal(platform.hosts[0]?.hostId, around.metald.hostId);
    const deployment = await deployAndWait(client, { app: `by-${protocol}` });
    assert.equal(deployment.state, DeploymentState.SUCCEEDED, JSON.stringify(deployment.failure));
    const { reason, code } = await refusal(client.getApp({ app: "nobody" }));
    assert.deepEqual([reason, code], ["APP_NOT_FOUND", Code.NotFound]);
  });
}

test("Connect over HTTP/1.1 and TLS 1.3 is served; TLS 1.2 and plaintext are refused", async () => {
  const transport = createConnectTransport({
    baseUrl: gateway.apiOrigin,
    httpVersion: "1.1",
    nodeOptions: { ca: gateway.ca },
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", `Bearer ${gateway.key}`);
        return next(request);
      },
    ],
  });
  assert.equal((await createClient(GatewayService, transport).getPlatform({})).appDomain, "localhost");

  for (const port of [apiPort(), gateway.ingressPort]) {
    const failure = await new Promise<NodeJS.ErrnoException>((resolve, reject) => {
      const socket = tlsConnect({
        host: "127.0.0.1",
        port,
        ca: gateway.ca,
        servername: "localhost",
        maxVersion: "TLSv1.2",
      });
      socket.once("secureConnect", () => reject(new Error("TLS 1.2 was accepted")));
      socket.once("error", resolve);
    });
    assert.match(String(failure.code), /ALERT_PROTOCOL_VERSION|ECONNRESET/);
  }
});

test("without a valid key nothing is answered", async () => {
  for (const [headers, detail] of [
    [{}, /no API key/],
    [{ authorization: "Basic abc" }, /form unkey_/],
    [{ authorization: "Bearer unkey_short" }, /form unkey_/],
    [{ authorization: `Bearer unkey_${"0".repeat(64)}` }, /not known/],
    [{ authorization: `Bearer unkey_${"0".repeat(64)}` }, /not known/],
  ] as const) {
    const answer = await rest(gateway, "GET", "/v1/apps", { headers, key: undefined });
    assert.equal(answer.status, 401);
    assert.equal(answer.headers["content-type"], "application/problem+json");
    assert.equal(answer.headers["www-authenticate"], "Bearer");
    assert.equal(answer.json["reason"], "UNAUTHENTICATED");
    assert.match(String(answer.json["detail"]), detail);
    assert.equal(answer.json["requestId"], answer.headers["x-request-id"]);
  }
});

test("a key may do what its scopes say and mint no more than it has", async () => {
  const client = gateway.client();
  const { secret } = await client.createApiKey({ name: "reader", scopes: ["apps:read", "keys:*"] });
  const reader = gateway.client({ key: secret });
  await reader.listApps({});
  const denied = await refusal(reader.listDeployments({}));
  assert.deepEqual([denied.reason, denied.code], ["SCOPE_MISSING", Code.PermissionDenied]);
  assert.match(denied.message, /deployments:read/);
  assert.equal((await refusal(reader.createApiKey({ name: "more", scopes: ["apps:write"] }))).reason, "SCOPE_MISSING");
  assert.equal((await refusal(reader.createApiKey({ name: "more", scopes: ["*"] }))).reason, "SCOPE_MISSING");
  assert.equal((await refusal(reader.createApiKey({ name: "odd", scopes: ["apps:fly"] }))).reason, "SCOPE_UNKNOWN");
  const past = await refusal(client.createApiKey({ name: "old", scopes: ["*"], expiresAtMs: 1n }));
  assert.equal(past.reason, "INVALID_REQUEST");
  const { apiKeys } = await client.listApiKeys({});
  assert.ok(apiKeys.some((key) => key.name === "reader"));
  assert.ok(!JSON.stringify(apiKeys, (_k, v: unknown) => (typeof v === "bigint" ? String(v) : v)).includes(secret));
});

test("a tenant opens only so many streams, over REST and Connect alike", async () => {
  const key = await otherTenant();
  const { ca } = gateway;
  const port = Number(new URL(gateway.apiOrigin).port);
  const ends = new AbortController();
  using stack = new DisposableStack();
  const statuses = [];
  for (let connection = 0; connection < 3; connection++) {
    const session = stack.use(await openH2({ port, ca, host: "localhost" }));
    for (let i = 0; i < 100; i++) {
      const head = { ":path": "/v1/vms/watch", ":authority": `localhost:${port}`, authorization: `Bearer ${key}` };
      const stream = session.request(head, { signal: ends.signal });
      stream.on("error", () => undefined);
      statuses.push(once(stream, "response").then(([answer]) => (answer as Record<string, unknown>)[":status"]));
    }
  }
  const all = await Promise.all(statuses);
  assert.equal(all.filter((status) => status === 200).length, 256);
  assert.equal(all.filter((status) => status === 429).length, 44);
  const watch = gateway.client({ key }).watchVms({})[Symbol.asyncIterator]();
  assert.equal((await refusal(watch.next())).reason, "TOO_MANY_STREAMS");
  ends.abort();
});

test("a key mints none that outlives it", async () => {
  const client = gateway.client();
  const expiresAtMs = BigInt(Date.now() + 600_000);
  const { secret } = await client.createApiKey({ name: "brief", scopes: ["keys:*"], expiresAtMs });
  const brief = gateway.client({ key: secret });
  for (const later of [0n, expiresAtMs + 1n]) {
    const refused = await refusal(brief.createApiKey({ name: "lasting", scopes: ["keys:*"], expiresAtMs: later }));
    assert.match(`${refused.reason} ${refused.message}`, /^INVALID_REQUEST expires_at_ms: the asking key/);
  }
  await brief.createApiKey({ name: "as brief", scopes: ["keys:*"], expiresAtMs });
});

test("a key that is revoked while in use is refused at once, and its streams end", async () => {
  const client = gateway.client();
  const { secret, apiKey } = await client.createApiKey({ name: "short-lived", scopes: ["*"] });
  const other = gateway.client({ key: secret });
  await other.listApps({});
  const watch = other.watchVms({})[Symbol.asyncIterator]();
  // A stream has begun when the gateway has authenticated it: the first VM is proof of that.
  await deployAndWait(client, { app: "revoked" });
  assert.equal((await watch.next()).done, false);
  const toItsEnd = async () => {
    for (;;) if ((await watch.next()).done) return;
  };
  const ended = refusal(toItsEnd());
  const revoked = await client.revokeApiKey({ apiKeyId: apiKey!.apiKeyId });
  assert.ok(revoked.revokedAtMs > 0n);
  assert.equal((await ended).reason, "UNAUTHENTICATED");
  const { reason, message } = await refusal(other.listApps({}));
  assert.equal(reason, "UNAUTHENTICATED");
  assert.match(message, /revoked/);
  const unknown = await refusal(client.revokeApiKey({ apiKeyId: newId("key") }));
  assert.equal(unknown.reason, "API_KEY_NOT_FOUND");
});

test("the same idempotency key answers the first deployment, with another body 422", async () => {
  const headers = { "idempotency-key": "once-only-1" };
  const body = { app: "idem", image: { reference: "hello:1" } };
  const first = await rest(gateway, "POST", "/v1/deployments", { body, headers });
  assert.equal(first.status, 202);
  const second = await rest(gateway, "POST", "/v1/deployments", { body, headers });
  assert.equal(second.status, 202);
  assert.equal(second.json["deploymentId"], first.json["deploymentId"]);
  const other = await rest(gateway, "POST", "/deploy", { body: { ...body, port: 81 }, headers });
  assert.equal(other.status, 422);
  assert.equal(other.json["reason"], "IDEMPOTENCY_KEY_REUSED");
  assert.equal(other.headers["content-type"], "application/problem+json");
  const ended = await untilTerminal(gateway.client(), String(first.json["deploymentId"]));
  assert.equal(ended.state, DeploymentState.SUCCEEDED);
  const late = await rest(gateway, "POST", "/v1/deployments", { body, headers });
  assert.equal(late.json["state"], "DEPLOYMENT_STATE_SUCCEEDED");
  const odd = await rest(gateway, "POST", "/v1/deployments", { body, headers: { "idempotency-key": "x".repeat(129) } });
  assert.equal(odd.json["reason"], "INVALID_REQUEST");
  const parallel = await Promise.all(
    Array.from({ length: 5 }, () =>
      rest(gateway, "POST", "/v1/deployments", { body, headers: { "idempotency-key": "once-only-2" } }),
    ),
  );
  assert.equal(new Set(parallel.map((answer) => answer.json["deploymentId"])).size, 1);
});

test("REST maps paths, queries and bodies; answers carry limits and the caller's request id", async () => {
  const created = await rest(gateway, "POST", "/v1/deployments", {
    body: { app: "rest", image: { reference: "hello:1" }, env: [{ name: "A", value: "b" }], vm_count: 1 },
    headers: { "x-request-id": "mine-1" },
  });
  assert.equal(created.status, 202, created.body);
  assert.equal(created.headers["x-request-id"], "mine-1");
  assert.match(String(created.headers["ratelimit-policy"]), /^"api-key";q=1000;w=5$/);
  assert.match(String(created.headers["ratelimit"]), /^"api-key";r=\d+;t=\d+$/);
  const id = String(created.json["deploymentId"]);

  const watched = await rest(gateway, "GET", `/v1/deployments/${id}/watch`);
  assert.equal(watched.headers["content-type"], "application/x-ndjson");
  const lines = watched.body
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.equal(lines.at(-1)?.["state"], "DEPLOYMENT_STATE_SUCCEEDED");

  const one = await rest(gateway, "GET", `/v1/deployments/${id}`);
  assert.equal(one.json["app"], "rest");
  assert.equal(one.json["failure"], undefined);
  const listed = await rest(gateway, "GET", "/v1/deployments?app=rest&pageSize=1");
  assert.equal((listed.json["deployments"] as unknown[]).length, 1);
  const snake = await rest(gateway, "GET", "/v1/deployments?app=rest&page_size=1");
  assert.equal(snake.status, 200);
  const [vmId] = one.json["vmIds"] as string[];
  assert.equal((await rest(gateway, "GET", `/v1/vms/${vmId}`)).json["state"], "VM_STATE_RUNNING");
  const logs = await rest(gateway, "GET", `/v1/logs?vmId=${vmId}&source=LOG_SOURCE_APP`);
  const chunk = JSON.parse(logs.body.split("\n")[0]!) as { data: string };
  assert.equal(Buffer.from(chunk.data, "base64").toString(), "listening\n");
  assert.equal((await rest(gateway, "POST", "/v1/apps/rest/stop")).json["state"], "APP_STATE_STOPPED");
  assert.equal((await rest(gateway, "DELETE", "/v1/apps/rest")).json["state"], "APP_STATE_DELETED");
});

test("what REST cannot take is refused precisely", async () => {
  const cases: [string, string, Parameters<typeof rest>[3], number, string, RegExp][] = [
    ["GET", "/v1/app", {}, 404, "ROUTE_UNKNOWN", /\/v1\/apps/],
    ["GET", "/", {}, 404, "ROUTE_UNKNOWN", /./],
    ["PUT", "/v1/apps", {}, 405, "METHOD_NOT_ALLOWED", /GET/],
    [
      "POST",
      "/v1/deployments",
      { raw: '{"app": "x",, "credentials": {"password": "geheim"}}' },
      400,
      "MALFORMED_MESSAGE",
      /byte 12$/,
    ],
    ["POST", "/v1/deployments", { raw: '{"app": ' }, 400, "MALFORMED_MESSAGE", /ends before/],
    ["POST", "/v1/deployments", { raw: "[]" }, 400, "MALFORMED_MESSAGE", /not a JSON object/],
    ["POST", "/v1/deployments", { raw: Buffer.from([0x7b, 0xff, 0x7d]) }, 400, "MALFORMED_MESSAGE", /UTF-8/],
    ["POST", "/v1/deployments", { body: { nonsense: 1 } }, 400, "MALFORMED_MESSAGE", /"nonsense" is unknown/],
    [
      "POST",
      "/v1/deployments",
      { body: { credentials: { password: 12345 } } },
      400,
      "MALFORMED_MESSAGE",
      /^password: expected string$/,
    ],
    ["POST", "/v1/deployments", { body: { port: 65536, image: { reference: "a" } } }, 400, "INVALID_REQUEST", /port/],
    ["POST", "/v1/deployments", { body: { port: -1 } }, 400, "MALFORMED_MESSAGE", /^port: .*out of range/],
    [
      "POST",
      "/v1/deployments",
      { body: { app: "Not A Label", image: { reference: "a" } } },
      400,
      "INVALID_REQUEST",
      /app/,
    ],
    ["POST", "/v1/deployments", { body: {} }, 400, "INVALID_REQUEST", /image/],
    ["POST", "/v1/deployments", { body: { image: { uploadId: "upload_1" } } }, 400, "APP_NAME_NEEDED", /name/],
    ["POST", "/v1/deployments?app=x", { body: { image: { reference: "a" } } }, 400, "MALFORMED_MESSAGE", /"app"/],
    [
      "POST",
      "/v1/deployments",
      { raw: "a=b", headers: { "content-type": "application/x-www-form-urlencoded" } },
      415,
      "UNSUPPORTED_MEDIA_TYPE",
      /application\/json/,
    ],
    [
      "POST",
      "/v1/deployments",
      { raw: "{}", headers: { "content-encoding": "br" } },
      415,
      "UNSUPPORTED_MEDIA_TYPE",
      /br/,
    ],
    [
      "POST",
      "/v1/deployments",
      { raw: JSON.stringify({ app: "x".repeat(5_000_000) }) },
      413,
      "BODY_TOO_LARGE",
      /4194304/,
    ],
    ["POST", "/v1/apps/x/stop", { body: { app: "y" } }, 400, "MALFORMED_MESSAGE", /given by the path/],
    ["GET", "/v1/deployments?nonsense=1", {}, 400, "MALFORMED_MESSAGE", /"nonsense"/],
    ["GET", "/v1/deployments?app=a&app=b", {}, 400, "MALFORMED_MESSAGE", /twice/],
    ["GET", "/v1/deployments?pageSize=x", {}, 400, "MALFORMED_MESSAGE", /page_size/],
    ["GET", "/v1/deployments?pageSize=1001", {}, 400, "INVALID_REQUEST", /page_size/],
    ["GET", "/v1/deployments?pageToken=zzz", {}, 400, "INVALID_REQUEST", /page_token/],
    ["GET", "/v1/logs?app=x&source=APP", {}, 400, "MALFORMED_MESSAGE", /LogSource/],
    ["GET", "/v1/logs?app=x&follow=maybe", {}, 400, "MALFORMED_MESSAGE", /true or false/],
    ["GET", "/v1/logs", {}, 400, "INVALID_REQUEST", /app, vm_id/],
    ["GET", "/v1/deployments/dep_1", {}, 400, "INVALID_REQUEST", /deployment_id/],
    ["GET", `/v1/deployments/${newId("dep")}`, {}, 404, "DEPLOYMENT_NOT_FOUND", /dep_/],
    ["GET", `/v1/deployments/${newId("dep")}/watch`, {}, 404, "DEPLOYMENT_NOT_FOUND", /dep_/],
    ["GET", `/v1/vms/${newId("vm")}`, {}, 404, "VM_NOT_FOUND", /vm_/],
    ["POST", "/v1/apps/nobody/start", {}, 404, "APP_NOT_FOUND", /nobody/],
    ["POST", "/v1/apps/nobody/rollback", {}, 501, "UNIMPLEMENTED", /RollbackApp/],
    ["POST", "/v1/apps/nobody/scale", { body: { vmCount: 2 } }, 501, "UNIMPLEMENTED", /ScaleApp/],
    ["GET", "/v1/invoices", {}, 501, "UNIMPLEMENTED", /./],
    ["POST", "/v1/uploads", { raw: "{}" }, 415, "UNSUPPORTED_MEDIA_TYPE", /octet-stream/],
    ["DELETE", "/v1/apps/x", { raw: "{}" }, 400, "MALFORMED_MESSAGE", /no body/],
  ];
  for (const [method, path, options, status, reason, detail] of cases) {
    const answer = await rest(gateway, method, path, options);
    const what = `${method} ${path}: ${answer.status} ${answer.body.slice(0, 300)}`;
    assert.equal(answer.status, status, what);
    assert.equal(answer.headers["content-type"], "application/problem+json", what);
    assert.equal(answer.json["reason"], reason, what);
    assert.equal(answer.json["status"], status, what);
    assert.equal(answer.json["type"], `urn:unkey:error:${reason}`, what);
    assert.match(String(answer.json["detail"]), detail, what);
    assert.ok(String(answer.json["nextStep"]).length > 0, what);
    assert.doesNotMatch(answer.body, /geheim|12345/, what);
  }
  const allow = await rest(gateway, "PUT", "/v1/apps");
  assert.equal(allow.headers["allow"], "GET");
});

test("malformed messages over Connect get the code, the reason and a next step", async () => {
  const path = "/unkey.gateway.v1.GatewayService/GetApp";
  const json = await rest(gateway, "POST", path, { raw: "{nonsense" });
  assert.equal(json.status, 400);
  assert.equal(json.json["code"], "invalid_argument");
  assert.equal(
    (json.json["details"] as { debug?: { reason?: string } }[])[0]?.debug?.reason ?? "MALFORMED_MESSAGE",
    "MALFORMED_MESSAGE",
  );
  const proto = await rest(gateway, "POST", path, {
    raw: Buffer.from([0xff, 0xff, 0xff]),
    headers: { "content-type": "application/proto" },
  });
  assert.equal(proto.json["code"], "invalid_argument");
  const big = await rest(gateway, "POST", path, { raw: JSON.stringify({ app: "x".repeat(5_000_000) }) });
  assert.equal(big.json["code"], "resource_exhausted");
});

test("an upload over REST and over Connect reaches the builder whole", async () => {
  const bytes = Buffer.alloc(700_000, "layer");
  const answer = await rest(gateway, "POST", "/v1/uploads?name=app.tar", {
    raw: bytes,
    headers: { "content-type": "application/x-tar" },
  });
  assert.equal(answer.status, 201, answer.body);
  assert.equal(around.builderd.uploads.at(-1)?.size, bytes.byteLength);
  assert.equal(around.builderd.uploads.at(-1)?.name, "app.tar");
  async function* chunks(second = "") {
    yield { name: "app.tar" };
    for (let at = 0; at < bytes.byteLength; at += 100_000) {
      yield { chunk: bytes.subarray(at, at + 100_000), name: second };
    }
  }
  assert.equal((await refusal(gateway.client().uploadImage(chunks("late")))).reason, "INVALID_REQUEST");
  const upload = await gateway.client().uploadImage(chunks());
  assert.equal(around.builderd.uploads.at(-1)?.name, "app.tar");
  assert.equal(upload.digest, answer.json["digest"]);
  const deployment = await deployAndWait(gateway.client(), {
    app: "uploaded",
    image: { source: { case: "uploadId", value: upload.uploadId } },
  });
  assert.equal(deployment.state, DeploymentState.SUCCEEDED);
  // The fake calls a build by its upload's id.
  assert.equal(deployment.image, upload.uploadId);
  const discarded = await rest(gateway, "DELETE", `/v1/uploads/${upload.uploadId}`);
  assert.equal(discarded.status, 200, discarded.body);
  assert.equal(around.builderd.discarded.at(-1), upload.uploadId);
});

test("a deployment whose build is refused frees its upload", async () => {
  const uploadId = newId("upload");
  around.builderd.before = (method) => {
    if (method === "buildImage") throw new ServiceError("BUILD_QUOTA_EXCEEDED", "too much");
  };
  const refused = await deployAndWait(gateway.client(), {
    app: "refused",
    image: { source: { case: "uploadId", value: uploadId } },
  }).finally(() => (around.builderd.before = () => undefined));
  assert.deepEqual([refused.failure?.step, refused.failure?.reason], ["build", "BUILD_QUOTA_EXCEEDED"]);
  assert.ok(around.builderd.discarded.includes(uploadId));
});

test("a build's log, quota and end go through with the key's tenant", async () => {
  const client = gateway.client();
  const { buildId } = await deployAndWait(client, { app: "logged" });
  const sequences = async (request: { readonly afterSequence?: bigint }) =>
    (await Array.fromAsync(client.streamBuildLogs({ buildId, ...request }))).map(({ sequence }) => sequence);
  assert.deepEqual(await sequences({}), [1n, 2n, 3n]);
  assert.deepEqual(await sequences({ afterSequence: 2n }), [3n]);
  const lines = await rest(gateway, "GET", `/v1/builds/${buildId}/logs?after_sequence=1`);
  assert.deepEqual(
    lines.body
      .trim()
      .split("\n")
      .map((line) => (JSON.parse(line) as { text: string }).text),
    ["line 2", "line 3"],
  );
  const quota = await rest(gateway, "GET", "/v1/build-quota");
  assert.deepEqual([quota.json["dailyLimit"], Number(quota.json["dailyUsed"]) > 0], [500, true]);
  const cancelled = await rest(gateway, "POST", `/v1/builds/${buildId}/cancel`);
  assert.equal(cancelled.json["state"], "BUILD_STATE_CANCELLED");
  const stranger = gateway.client({ key: await otherTenant() });
  assert.equal((await refusal(Array.fromAsync(stranger.streamBuildLogs({ buildId })))).code, Code.NotFound);
  assert.equal((await refusal(stranger.cancelBuild({ buildId }))).code, Code.NotFound);
  assert.equal((await stranger.getBuildQuota({})).dailyUsed, 0);
});

test("VMs are listed with the names of their apps", async () => {
  const client = gateway.client();
  const { appId } = await deployAndWait(client, { app: "named" });
  const { vms, appNames } = await client.listVms({ app: "named" });
  assert.deepEqual([vms.length, appNames], [1, { [appId]: "named" }]);
});

test("a request target that would be a bad host in a URL is a path that there is not", async () => {
  for (const path of ["//", "//[", "//evil.example:99999/v1/apps"]) {
    const answer = await rest(gateway, "GET", path, { key: undefined });
    assert.deepEqual([answer.status, answer.json["reason"]], [404, "ROUTE_UNKNOWN"], path);
  }
});

test("the API document is served to anybody and names every path", async () => {
  const answer = await rest(gateway, "GET", "/openapi.json", { key: undefined });
  assert.equal(answer.status, 200);
  assert.deepEqual(answer.json, committedDocument);
  const described = new Set(Object.keys(answer.json["paths"] ?? {}));
  const promised = GatewayService.methods.map((method) => getOption(method, restOption).path);
  assert.deepEqual(
    promised.filter((path) => !described.has(path)),
    [],
  );
});

test("one tenant sees nothing of another", async () => {
  const client = gateway.client();
  const mine = await deployAndWait(client, { app: "mine" });
  const key = await otherTenant();
  const stranger = gateway.client({ key });
  assert.equal(
    (await refusal(stranger.getDeployment({ deploymentId: mine.deploymentId }))).reason,
    "DEPLOYMENT_NOT_FOUND",
  );
  assert.equal(
    (await refusal(stranger.cancelDeployment({ deploymentId: mine.deploymentId }))).reason,
    "DEPLOYMENT_NOT_FOUND",
  );
  assert.equal((await refusal(stranger.getApp({ app: "mine" }))).reason, "APP_NOT_FOUND");
  assert.equal((await refusal(stranger.deleteApp({ app: "mine" }))).reason, "APP_NOT_FOUND");
  assert.equal((await refusal(stranger.deleteVm({ vmId: mine.vmIds[0]! }))).reason, "VM_NOT_FOUND");
  assert.equal((await refusal(stranger.pauseVm({ vmId: mine.vmIds[0]! }))).reason, "VM_NOT_FOUND");
  assert.equal((await refusal(stranger.startVm({ vmId: mine.vmIds[0]! }))).reason, "VM_NOT_FOUND");
  assert.equal((await refusal(stranger.getUsage({ vmId: mine.vmIds[0]! }))).reason, "VM_NOT_FOUND");
  assert.deepEqual((await stranger.listApps({})).apps, []);
  assert.deepEqual((await stranger.listVms({ includeDeleted: true })).vms, []);
  assert.deepEqual((await stranger.listDeployments({})).deployments, []);
  assert.ok(
    (await stranger.listAuditEvents({})).events.every(
      (event) => event.outcome !== "ok" || event.action !== "CreateDeployment",
    ),
  );
  const taken = await refusal(stranger.createDeployment({ app: "mine", image: helloImage }));
  assert.deepEqual([taken.reason, taken.code], ["APP_NAME_TAKEN", Code.AlreadyExists]);
  const [vm] = around.metald.alive.filter((each) => each.vmId === mine.vmIds[0]);
  assert.ok(vm);
});

/** A second tenant: the API has no method for one, so it is written where the first start wrote the first. */
async function otherTenant(): Promise<string> {
  const { openSqlite } = await import("@unkey/sql");
  const { migrations } = await import("../src/store/schema.ts");
  const { newKey } = await import("../src/service/keys.ts");
  const { KeyStore } = await import("../src/store/key-store.ts");
  const { randomBytes } = await import("node:crypto");
  await using sql = await openSqlite({ path: `${around.dataDir}/gatewayd.db`, migrations });
  const tenantId = newId("tenant");
  await sql.run("INSERT INTO tenant (tenant_id, created_at_ms) VALUES (?, ?)", [tenantId, Date.now()]);
  const { key, digest, secret } = newKey(
    { tenantId, name: "other", scopes: ["*"], expiresAtMs: 0, nowMs: Date.now() },
    randomBytes,
  );
  await new KeyStore(sql).insert(key, digest, 1);
  return secret;
}

test("usage is asked for with ids and answered with names, also of deleted apps", async () => {
  const client = gateway.client();
  await deployAndWait(client, { app: "metered" });
  const app = await client.getApp({ app: "metered" });
  await client.deleteApp({ app: "metered" });
  around.aggregator.report = { apps: [], vms: [] };
  const { create } = await import("@bufbuild/protobuf");
  const { UsageLineSchema } = await import("@unkey/api/billing");
  around.aggregator.report = { apps: [create(UsageLineSchema, { appId: app.appId })] };
  const usage = await client.getUsage({ app: "metered" });
  assert.equal(around.aggregator.queries.at(-1)?.appId, app.appId);
  assert.equal(around.aggregator.queries.at(-1)?.tenantId, app.tenantId);
  assert.deepEqual(usage.appNames, { [app.appId]: "metered" });
});

test("what was done and what was denied stands in the audit log, in order", async () => {
  const client = gateway.client();
  const { secret, apiKey } = await client.createApiKey({ name: "audited", scopes: ["audit:read"] });
  const audited = gateway.client({ key: secret });
  await refusal(audited.listApps({}));
  await client.revokeApiKey({ apiKeyId: apiKey!.apiKeyId });
  const { events, nextPageToken } = await client.listAuditEvents({ pageSize: 3 });
  assert.notEqual(nextPageToken, "");
  const shown = events.map(({ action, outcome }) => `${action} ${outcome}`);
  assert.deepEqual(shown, ["RevokeApiKey ok", "ListApps SCOPE_MISSING", "CreateApiKey ok"]);
  assert.equal(events[1]?.actor, apiKey!.apiKeyId);
  assert.equal(events[0]?.target, apiKey!.apiKeyId);
  assert.match(events[0]?.requestId ?? "", /^req_/);
  const next = await client.listAuditEvents({ pageSize: 3, pageToken: nextPageToken });
  assert.notEqual(next.events[0]?.eventId, events[2]?.eventId);
});
