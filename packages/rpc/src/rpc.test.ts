import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { connect as connectHttp2, constants, createSecureServer } from "node:http2";
import { type AddressInfo, connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { create, toBinary } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import { AssetService, GetAssetRequestSchema, type UploadAssetRequest } from "@unkey/api/asset";
import { type Clock, type ErrorReason, isServiceError, newId, ServiceError, systemClock } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import {
  callerOf,
  callOptions,
  inMemoryClient,
  type ListenRpcOptions,
  listenRpc,
  mintPrincipal,
  openRpcChannel,
  type RpcChannelOptions,
} from "./index.ts";

const hourMs = 3_600_000;
const trustDomain = "unkey.test";
const tenantId = newId("tenant");
const assetId = newId("asset");

let dir = "";
let authority: Authority;
let stack = new AsyncDisposableStack();
let lines: Record<string, unknown>[] = [];
const log = createLogger({
  level: "trace",
  write: (line) => lines.push(JSON.parse(line) as Record<string, unknown>),
});

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "rpc-"));
  authority = Authority.open(join(dir, "ca"), { commonName: "Test" });
  stack = new AsyncDisposableStack();
  lines = [];
});
afterEach(async () => {
  await stack.disposeAsync();
  rmSync(dir, { recursive: true, force: true });
});

function identityOf(
  service: string,
  options: { readonly by?: Authority; readonly clock?: Clock; readonly domain?: string } = {},
) {
  const path = join(dir, `${service}-${Math.random().toString(36).slice(2)}`);
  const { clock = systemClock } = options;
  ensureIdentity(options.by ?? authority, path, { id: { trustDomain: options.domain ?? trustDomain, service } }, clock);
  return { path, source: stack.use(IdentitySource.open(path, { clock })) };
}

interface Handlers {
  readonly routes: (router: ConnectRouter) => void;
  readonly seen: unknown[];
  readonly started: PromiseWithResolvers<void>;
  readonly release: PromiseWithResolvers<void>;
}

/** assetmanagerd's contract with behaviour that shows what reaches a handler. */
function handlers(): Handlers {
  const seen: unknown[] = [];
  const started = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const routes = (router: ConnectRouter) =>
    router.service(AssetService, {
      getAsset: async (request, context) => {
        const caller = callerOf(context);
        seen.push(caller);
        if (request.assetId === "missing") {
          throw new ServiceError("NOT_FOUND", "no such asset", {
            cause: new Error("the row is gone"),
            metadata: { asset: "missing" },
          });
        }
        if (request.assetId === "broken") throw new TypeError("secret inner detail");
        if (request.assetId === "slow")
          await new Promise((_, reject) => caller.signal.addEventListener("abort", reject));
        return {
          assetId: request.assetId,
          tenantId: request.tenantId,
          name: `${caller.service} ${caller.subject ?? "-"}`,
        };
      },
      downloadAsset: async function* (request, context) {
        yield { chunk: Buffer.from("one") };
        started.resolve();
        if (request.assetId === "endless") {
          await new Promise((_, reject) =>
            context.signal.addEventListener("abort", () => reject(context.signal.reason)),
          );
        }
        await release.promise;
        yield { chunk: Buffer.from("two") };
      },
      uploadAsset: async (requests) => {
        let bytes = 0;
        for await (const { part } of requests) {
          seen.push(part.case);
          if (part.case === "chunk") bytes += part.value.length;
        }
        return { sizeBytes: BigInt(bytes) };
      },
    });
  return { routes, seen, started, release };
}

async function startServer(options: Partial<ListenRpcOptions> & { readonly handlers?: Handlers } = {}) {
  const served = options.handlers ?? handlers();
  const identity = options.identity ?? identityOf("assetmanagerd").source;
  const metrics = new Metrics();
  const server = await listenRpc({
    host: "127.0.0.1",
    port: 0,
    log,
    metrics,
    identity,
    routes: served.routes,
    ...options,
  });
  stack.use(server);
  return { server, metrics, ...served };
}

function open(port: number, options: Partial<RpcChannelOptions> & { readonly as?: string } = {}) {
  const channel = openRpcChannel({
    peer: "assetmanagerd",
    address: { host: "127.0.0.1", port },
    identity: options.identity ?? identityOf(options.as ?? "metald").source,
    ...options,
  });
  stack.use(channel);
  return { channel, assets: channel.client(AssetService) };
}

async function rejectsWith(call: Promise<unknown>, reason: ErrorReason, message?: RegExp): Promise<ServiceError> {
  const error = await call.then(
    () => assert.fail(`succeeded instead of ${reason}`),
    (cause: unknown) => cause,
  );
  assert.ok(isServiceError(error), `not a ServiceError: ${String(error)}`);
  assert.equal(error.reason, reason, error.message);
  if (message) assert.match(error.message, message);
  return error;
}

const gatewayPrincipal = (overrides = {}) => ({
  tenantId,
  subject: "key_1",
  roles: ["owner"],
  requestId: "req-7",
  ...overrides,
});

function mint(
  identity: IdentitySource,
  options: { readonly nowMs?: number; readonly principal?: object } = {},
): string {
  return mintPrincipal({
    identity: identity.current,
    principal: gatewayPrincipal(options.principal),
    nowMs: options.nowMs ?? Date.now(),
  });
}

test("a call carries the service, the principal, the request id and the deadline", async () => {
  const { server, seen, metrics } = await startServer();
  const gateway = identityOf("gatewayd").source;
  const { assets } = open(server.port, { identity: gateway });
  const asset = await assets.getAsset(
    { tenantId, assetId },
    callOptions({ principalToken: mint(gateway), requestId: "ignored", timeoutMs: 5000 }),
  );
  assert.equal(asset.name, "gatewayd key_1");
  const caller = seen[0] as ReturnType<typeof callerOf>;
  assert.equal(caller.tenantId, tenantId);
  assert.deepEqual(caller.roles, ["owner"]);
  assert.equal(caller.requestId, "req-7");
  const leftMs = caller.remainingMs() ?? -1;
  assert.ok(leftMs > 0 && leftMs <= 5000);
  assert.match(
    metrics.render(),
    /unkey_rpc_server_calls_total\{method="unkey.asset.v1.AssetService\/GetAsset",code="ok"\} 1/,
  );
});

test("a handler forwards what is left of its deadline, its principal and its request id", async () => {
  const inner = await startServer();
  const { assets } = open(inner.server.port, { as: "metald" });
  const outer = await startServer({
    routes: (router) =>
      router.service(AssetService, {
        getAsset: (request, context) => assets.getAsset(request, callOptions(callerOf(context), { timeoutMs: 60_000 })),
      }),
  });
  const gateway = identityOf("gatewayd").source;
  const client = open(outer.server.port, { identity: gateway }).assets;
  const options = callOptions({ principalToken: mint(gateway), timeoutMs: 5000 });
  assert.equal((await client.getAsset({ tenantId, assetId }, options)).name, "metald key_1");
  const caller = inner.seen[0] as ReturnType<typeof callerOf>;
  assert.equal(caller.tenantId, tenantId);
  assert.equal(caller.requestId, "req-7");
  assert.ok((caller.remainingMs() ?? 6000) <= 5000);
  const late = client.getAsset(
    { tenantId, assetId: "slow" },
    callOptions({ principalToken: mint(gateway), timeoutMs: 200 }),
  );
  await rejectsWith(late, "DEADLINE_EXCEEDED");
  const slow = inner.seen[1] as ReturnType<typeof callerOf>;
  if (!slow.signal.aborted) await new Promise((resolve) => slow.signal.addEventListener("abort", resolve));
});

test("an error arrives with reason, next step and metadata, and its cause is logged once and stays inside", async () => {
  const { server } = await startServer();
  const { assets } = open(server.port);
  const error = await rejectsWith(assets.getAsset({ assetId: "missing" }), "NOT_FOUND", /^no such asset$/);
  assert.equal(error.nextStep, new ServiceError("NOT_FOUND", "").nextStep);
  assert.deepEqual(error.metadata, { asset: "missing" });
  const logged = lines.filter((line) => JSON.stringify(line).includes("the row is gone"));
  assert.equal(logged.length, 1);
});

test("an unexpected error leaves as INTERNAL without its detail", async () => {
  const { server } = await startServer();
  const { assets } = open(server.port);
  const error = await rejectsWith(assets.getAsset({ assetId: "broken" }), "INTERNAL");
  assert.doesNotMatch(JSON.stringify([error.message, error.metadata]), /secret inner/);
  assert.ok(lines.some((line) => line["level"] === "error" && JSON.stringify(line).includes("secret inner detail")));
});

test("an RPC without a handler answers UNIMPLEMENTED, unary and stream", async () => {
  const { server } = await startServer();
  const { assets } = open(server.port, { as: "gatewayd" });
  await rejectsWith(assets.listAssets({}), "UNIMPLEMENTED");
});

test("the allow-list of the contract decides who may call", async () => {
  const { server, seen } = await startServer();
  const { assets } = open(server.port, { as: "billaged" });
  await rejectsWith(assets.getAsset({ assetId }), "CALLER_NOT_ALLOWED", /billaged may not call/);
  await rejectsWith(open(server.port).assets.collectGarbage({}), "CALLER_NOT_ALLOWED", /metald may not call/);
  assert.deepEqual(seen, []);
});

test("a method that acts for a tenant needs a principal", async () => {
  const { server } = await startServer();
  await rejectsWith(open(server.port, { as: "gatewayd" }).assets.getStorageUsage({ tenantId }), "PRINCIPAL_REQUIRED");
});

test("another tenant's id is refused in a unary call, in a stream's request and in any message of a client stream", async () => {
  const { server, seen } = await startServer();
  const gateway = identityOf("gatewayd").source;
  const { assets } = open(server.port);
  const other = newId("tenant");
  const options = () => callOptions({ principalToken: mint(gateway) });
  await rejectsWith(assets.getAsset({ tenantId: other, assetId }, options()), "TENANT_MISMATCH");
  await rejectsWith(assets.getAsset({ tenantId: "", assetId }, options()), "TENANT_MISMATCH");
  await rejectsWith(collect(assets.downloadAsset({ tenantId: other, assetId }, options())), "TENANT_MISMATCH");
  const header = { name: "a", kind: 1, digest: `sha256:${"0".repeat(64)}`, sizeBytes: 0n };
  async function* upload(): AsyncGenerator<{ part: UploadAssetRequest["part"] }> {
    yield await Promise.resolve({ part: { case: "chunk" as const, value: new Uint8Array(1) } });
    yield { part: { case: "header" as const, value: { ...header, tenantId: other, labels: {} } as never } };
  }
  await rejectsWith(assets.uploadAsset(upload(), options()), "TENANT_MISMATCH");
  assert.deepEqual(seen, ["chunk"]);
});

test("a principal is refused when it is not the gateway's, has expired, is forged or of another authority", async () => {
  const { server } = await startServer();
  const gateway = identityOf("gatewayd").source;
  const { assets } = open(server.port);
  const call = (principalToken: string) => assets.getAsset({ tenantId, assetId }, callOptions({ principalToken }));
  await rejectsWith(call(mint(identityOf("metald").source)), "PRINCIPAL_INVALID", /not signed by gatewayd/);
  await rejectsWith(call(mint(gateway, { nowMs: Date.now() - hourMs })), "PRINCIPAL_INVALID", /has expired/);
  await rejectsWith(call(mint(gateway, { nowMs: Date.now() + hourMs })), "PRINCIPAL_INVALID", /from the future/);
  const foreign = Authority.open(join(dir, "ca2"), { commonName: "Other" });
  await rejectsWith(
    call(mint(identityOf("gatewayd", { by: foreign }).source)),
    "PRINCIPAL_INVALID",
    /another authority/,
  );
  const [header, payload, signature] = mint(gateway).split(".") as [string, string, string];
  const forged = Buffer.from(payload, "base64url").toString().replace(tenantId, newId("tenant"));
  await rejectsWith(
    call(`${header}.${Buffer.from(forged).toString("base64url")}.${signature}`),
    "PRINCIPAL_INVALID",
    /signature/,
  );
  const none = Buffer.from(JSON.stringify({ alg: "none", typ: "unkey-principal+jwt" })).toString("base64url");
  await rejectsWith(call(`${none}.${payload}.${signature}`), "PRINCIPAL_INVALID", /another kind/);
  await rejectsWith(call("a.b.c"), "PRINCIPAL_INVALID");
  await rejectsWith(call("x".repeat(9000)), "PRINCIPAL_INVALID", /longer than/);
});

test("a certificate of another authority, no certificate, a foreign trust domain and an expired one are told why", async () => {
  const { server } = await startServer();
  const foreign = Authority.open(join(dir, "ca2"), { commonName: "Other" });
  const good = identityOf("metald").source;
  const stranger = identityOf("metald", { by: foreign }).source;
  // It trusts the server's authority, so the handshake succeeds from its side and the refusal is the server's.
  const mixed = { current: { ...stranger.current, caPem: good.current.caPem }, onRenewal: good.onRenewal.bind(good) };
  const { assets } = open(server.port, { identity: mixed as unknown as IdentitySource });
  await rejectsWith(assets.getAsset({ assetId }), "CLIENT_CERTIFICATE_REFUSED", /another authority/);

  const elsewhere = identityOf("metald", { domain: "other.test" }).source;
  const asOurs = { current: { ...elsewhere.current, id: good.current.id }, onRenewal: good.onRenewal.bind(good) };
  await rejectsWith(
    open(server.port, { identity: asOurs as unknown as IdentitySource }).assets.getAsset({ assetId }),
    "CLIENT_CERTIFICATE_REFUSED",
    /trust domain other.test/,
  );

  const past: Clock = { ...systemClock, nowMs: () => Date.now() - 48 * hourMs };
  const expired = identityOf("metald", {
    by: Authority.open(join(dir, "ca"), { commonName: "Test", clock: past }),
    clock: past,
  });
  await rejectsWith(
    open(server.port, { identity: expired.source }).assets.getAsset({ assetId }),
    "CLIENT_CERTIFICATE_REFUSED",
    /has expired/,
  );

  const session = connectHttp2(`https://127.0.0.1:${server.port}`, { ca: good.current.caPem });
  const { status, body } = await post(session, "/unkey.asset.v1.AssetService/GetAsset", Buffer.alloc(0));
  assert.equal(status, 401);
  assert.match(body, /presented no certificate/);
  assert.match(body, /CLIENT_CERTIFICATE_REFUSED/);
  session.destroy();
  assert.equal(lines.filter((line) => line["message"] === "client refused").length, 4);
});

test("a connection outlives its certificate, its calls do not", async () => {
  let nowMs = Date.now();
  const { server } = await startServer({ clock: { ...systemClock, nowMs: () => nowMs } });
  const { assets } = open(server.port);
  await assets.getAsset({ assetId });
  nowMs += 25 * hourMs;
  await rejectsWith(assets.getAsset({ assetId }), "CLIENT_CERTIFICATE_REFUSED", /of this connection has expired/);
});

test("a server of another name is not talked to", async () => {
  const { server } = await startServer({ identity: identityOf("builderd").source });
  const error = await rejectsWith(open(server.port).assets.uploadAsset(chunks()), "DEPENDENCY_UNAVAILABLE");
  assert.match((error.cause as Error).message, /builderd .*not assetmanagerd/);
});

test("plaintext is answered in its own language", async () => {
  const { server } = await startServer();
  const answer = await rawExchange(
    server.port,
    "POST /unkey.asset.v1.AssetService/GetAsset HTTP/1.1\r\nHost: x\r\n\r\n",
  );
  const [head = "", body = ""] = answer.split("\r\n\r\n");
  assert.match(head, /^HTTP\/1.1 400 Bad Request/);
  const error = JSON.parse(body) as Record<string, string>;
  assert.equal(error["reason"], "TLS_REQUIRED");
  assert.match(error["message"] ?? "", /speaks TLS/);
  assert.match(error["nextStep"] ?? "", /https/);

  const session = connectHttp2(`http://127.0.0.1:${server.port}`);
  session.on("error", () => undefined);
  const [code, , debug] = await new Promise<[number, number, Buffer]>((resolve) =>
    session.once("goaway", (...args) => resolve(args as unknown as [number, number, Buffer])),
  );
  assert.equal(code, constants.NGHTTP2_INADEQUATE_SECURITY);
  assert.match(debug.toString(), /speaks TLS/);
  session.destroy();

  assert.equal(await rawExchange(server.port, "\x00\x01\x02garbage"), "");
  assert.deepEqual(
    lines.filter((line) => line["message"] === "plaintext refused").map((line) => line["kind"]),
    ["http1", "http2", "unknown"],
  );
  assert.equal((await open(server.port).assets.getAsset({ assetId })).assetId, assetId);
});

test("only TLS 1.3 is spoken", async () => {
  const { server } = await startServer();
  const { caPem, certPem, keyPem } = identityOf("metald").source.current;
  const socket = connectTls({
    host: "127.0.0.1",
    port: server.port,
    ca: caPem,
    cert: certPem,
    key: keyPem,
    maxVersion: "TLSv1.2",
  });
  const error = await new Promise<Error>((resolve) => socket.once("error", resolve));
  assert.match(String(error), /protocol version|ECONNRESET/i);
});

test("malformed protobuf, JSON, content type, path and method are refused precisely", async () => {
  const { server, seen } = await startServer();
  const { caPem, certPem, keyPem } = identityOf("metald").source.current;
  const session = connectHttp2(`https://127.0.0.1:${server.port}`, { ca: caPem, cert: certPem, key: keyPem });
  const path = "/unkey.asset.v1.AssetService/GetAsset";
  const reasonOf = (body: string) => {
    const { details } = JSON.parse(body) as { details: { debug: { reason: string; nextStep: string } }[] };
    assert.ok(details[0]?.debug.nextStep);
    return details[0].debug.reason;
  };
  const binary = await post(session, path, Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0xff]));
  assert.deepEqual([binary.status, reasonOf(binary.body)], [400, "MALFORMED_MESSAGE"]);
  const json = await post(session, path, Buffer.from("{nope"), { "content-type": "application/json" });
  assert.deepEqual([json.status, reasonOf(json.body)], [400, "MALFORMED_MESSAGE"]);
  const text = await post(session, path, Buffer.from("x"), { "content-type": "text/plain" });
  assert.deepEqual([text.status, reasonOf(text.body)], [400, "MALFORMED_MESSAGE"]);
  const nowhere = await post(session, "/unkey.asset.v1.AssetService/Nothing", Buffer.alloc(0));
  assert.deepEqual([nowhere.status, reasonOf(nowhere.body)], [501, "UNIMPLEMENTED"]);
  const gzip = await post(session, path, Buffer.alloc(0), { "content-encoding": "gzip" });
  assert.deepEqual([gzip.status, reasonOf(gzip.body)], [501, "UNIMPLEMENTED"]);
  const valid = toBinary(GetAssetRequestSchema, create(GetAssetRequestSchema, { assetId }));
  assert.equal((await post(session, path, valid)).status, 200);
  assert.equal(seen.length, 1);
  session.destroy();
});

test("rules of the contract are checked, in calls and in streams", async () => {
  const { server, seen } = await startServer();
  const { assets } = open(server.port);
  await rejectsWith(assets.getAsset({ assetId: "" }), "INVALID_REQUEST", /asset_id/);
  await rejectsWith(collect(assets.downloadAsset({ assetId: "" })), "INVALID_REQUEST", /asset_id/);
  await rejectsWith(assets.uploadAsset(chunks(new Uint8Array(1), undefined)), "INVALID_REQUEST", /part/);
  assert.deepEqual(seen, ["chunk"]);
});

test("a message over the limit is refused before it is parsed", async () => {
  const { server } = await startServer({ maxMessageBytes: 1000 });
  const { assets } = open(server.port);
  await rejectsWith(assets.getAsset({ assetId: "x".repeat(2000) }), "MESSAGE_TOO_LARGE");
  await rejectsWith(assets.uploadAsset(chunks(new Uint8Array(2000))), "MESSAGE_TOO_LARGE");
  assert.equal((await assets.getAsset({ assetId })).assetId, assetId);
});

test("headers over the limit do not reach a handler", async () => {
  const { server, seen } = await startServer();
  const { caPem, certPem, keyPem } = identityOf("metald").source.current;
  const session = connectHttp2(`https://127.0.0.1:${server.port}`, { ca: caPem, cert: certPem, key: keyPem });
  session.on("error", () => undefined);
  const flood = Object.fromEntries(Array.from({ length: 200 }, (_, i) => [`x-${i}`, "y".repeat(100)]));
  const { status } = await post(session, "/unkey.asset.v1.AssetService/GetAsset", Buffer.alloc(0), flood).catch(() => ({
    status: 0,
  }));
  assert.notEqual(status, 200);
  assert.deepEqual(seen, []);
  session.destroy();
});

test("a client that cancels without end is cut off, others are served", async () => {
  const { server } = await startServer();
  const { caPem, certPem, keyPem } = identityOf("metald").source.current;
  const session = connectHttp2(`https://127.0.0.1:${server.port}`, { ca: caPem, cert: certPem, key: keyPem });
  const failed = new Promise<unknown>((resolve) => session.on("error", resolve).on("goaway", resolve));
  const path = "/unkey.asset.v1.AssetService/GetAsset";
  for (let i = 0; i < 3000 && !session.destroyed && !session.closed; i++) {
    const stream = session.request({ ":method": "POST", ":path": path, "content-type": "application/proto" });
    stream.on("error", () => undefined);
    stream.close(constants.NGHTTP2_CANCEL);
    if (i % 100 === 0) await delay(0);
  }
  await failed;
  session.destroy();
  assert.equal((await open(server.port).assets.getAsset({ assetId })).assetId, assetId);
});

test("a deadline aborts the handler's signal and is told as such", async () => {
  const { server, seen } = await startServer();
  const { assets } = open(server.port);
  await rejectsWith(assets.getAsset({ assetId: "slow" }, { timeoutMs: 50 }), "DEADLINE_EXCEEDED");
  const caller = seen[0] as ReturnType<typeof callerOf>;
  if (!caller.signal.aborted) await new Promise((resolve) => caller.signal.addEventListener("abort", resolve));
});

test("the server's own default and maximum hold when the caller asks for more", async () => {
  const { server } = await startServer({ maxTimeoutMs: 50 });
  await rejectsWith(open(server.port).assets.getAsset({ assetId: "slow" }, { timeoutMs: 60_000 }), "DEADLINE_EXCEEDED");
  const client = inMemoryClient(AssetService, {
    routes: handlers().routes,
    caller: { service: "metald" },
    defaultTimeoutMs: 50,
  });
  await rejectsWith(client.getAsset({ assetId: "slow" }), "DEADLINE_EXCEEDED");
});

test("a caller that goes away aborts the handler's signal", async () => {
  const { server, seen } = await startServer();
  const { assets } = open(server.port);
  const leave = new AbortController();
  const call = assets.getAsset({ assetId: "slow" }, { signal: leave.signal });
  while (seen.length === 0) await delay(5);
  leave.abort();
  await rejectsWith(call, "CANCELED");
  const caller = seen[0] as ReturnType<typeof callerOf>;
  if (!caller.signal.aborted) await new Promise((resolve) => caller.signal.addEventListener("abort", resolve));
});

test("draining lets a running stream finish and refuses what comes after", async () => {
  const { server, started, release } = await startServer();
  const { assets } = open(server.port);
  const download = collect(assets.downloadAsset({ assetId }));
  await started.promise;
  const stopped = server[Symbol.asyncDispose]();
  await rejectsWith(open(server.port).assets.uploadAsset(chunks()), "DEPENDENCY_UNAVAILABLE");
  release.resolve();
  assert.deepEqual(
    (await download).map((part) => Buffer.from(part.chunk).toString()),
    ["one", "two"],
  );
  await stopped;
  await server[Symbol.asyncDispose](); // twice is harmless
});

test("the grace deadline cuts off what does not finish", async () => {
  const abort = new AbortController();
  const { server, started } = await startServer({ abort: abort.signal });
  const download = collect(open(server.port).assets.downloadAsset({ assetId: "endless" }));
  await started.promise;
  const stopped = server[Symbol.asyncDispose]();
  abort.abort(new Error("grace is over"));
  await rejectsWith(download, "SHUTTING_DOWN");
  await stopped;
});

test("renewed certificates reach both ends without dropping a running call", async () => {
  const serverIdentity = identityOf("assetmanagerd");
  const clientIdentity = identityOf("metald");
  const { server, started, release } = await startServer({ identity: serverIdentity.source });
  const { assets } = open(server.port, { identity: clientIdentity.source });
  const download = collect(assets.downloadAsset({ assetId }));
  await started.promise;

  const later: Clock = { ...systemClock, nowMs: () => Date.now() + 13 * hourMs };
  const serials = () => [serverIdentity, clientIdentity].map(({ source }) => source.current.certificate.serialNumber);
  const before = serials();
  for (const [identity, service] of [
    [serverIdentity, "assetmanagerd"],
    [clientIdentity, "metald"],
  ] as const) {
    assert.equal(ensureIdentity(authority, identity.path, { id: { trustDomain, service } }, later), true);
    assert.equal(identity.source.reload(), true);
  }
  assert.notDeepEqual(serials(), before);
  const shown = await new Promise<string | undefined>((resolve) => {
    const { caPem, certPem, keyPem } = clientIdentity.source.current;
    const socket = connectTls(
      { host: "127.0.0.1", port: server.port, ca: caPem, cert: certPem, key: keyPem, ALPNProtocols: ["h2"] },
      () => {
        resolve(socket.getPeerX509Certificate()?.serialNumber);
        socket.destroy();
      },
    );
  });
  assert.equal(shown, serials()[0]);
  assert.equal((await assets.getAsset({ assetId })).assetId, assetId);
  release.resolve();
  assert.equal((await download).length, 2);
});

test("a connection that breaks is opened again, to wherever the peer then listens", async () => {
  const { writeFileSync } = await import("node:fs");
  const file = join(dir, "address.json");
  const announce = (port: number) => writeFileSync(file, JSON.stringify({ addresses: { rpc: `127.0.0.1:${port}` } }));
  const first = await startServer();
  announce(first.server.port);
  const { assets, channel } = open(0, { address: { file } });
  await channel.ping();
  assert.equal((await assets.getAsset({ assetId })).assetId, assetId);
  await first.server[Symbol.asyncDispose]();
  const second = await startServer();
  announce(second.server.port);
  assert.equal((await assets.getAsset({ assetId })).assetId, assetId);
  assert.equal(second.seen.length, 1);
});

test("an idempotent call is repeated while the peer is away, another one is not", async () => {
  const waits: number[] = [];
  const clock: Clock = {
    ...systemClock,
    sleep: (ms) => {
      waits.push(ms);
      return Promise.resolve();
    },
  };
  const { assets } = open(1, { clock });
  await rejectsWith(assets.getAsset({ assetId }), "DEPENDENCY_UNAVAILABLE", /assetmanagerd cannot be reached/);
  assert.equal(waits.length, 2);
  await rejectsWith(assets.queryAssets({ query: {} }), "DEPENDENCY_UNAVAILABLE");
  await rejectsWith(assets.uploadAsset(chunks()), "DEPENDENCY_UNAVAILABLE");
  assert.equal(waits.length, 2);
});

test("a peer that dies in the middle of a call is unavailable, unary and stream", async () => {
  const abort = new AbortController();
  const { server, seen, started } = await startServer({ abort: abort.signal });
  const { assets } = open(server.port);
  const slow = assets.getAsset({ assetId: "slow" }, { timeoutMs: 10_000 });
  const stream = collect(assets.downloadAsset({ assetId: "endless" }));
  while (seen.length === 0) await delay(5);
  await started.promise;
  const calls = Promise.allSettled([slow, stream]);
  abort.abort();
  await server[Symbol.asyncDispose]();
  for (const result of await calls) {
    assert.equal(result.status, "rejected");
    assert.equal((result.reason as ServiceError).code, "unavailable", String(result.reason));
  }
});

test("refused and killed streams and cut connections are unavailable, whatever code the transport guesses", async () => {
  const { caPem, certPem, keyPem } = identityOf("assetmanagerd").source.current;
  const codes = [constants.NGHTTP2_REFUSED_STREAM, constants.NGHTTP2_CANCEL, constants.NGHTTP2_INTERNAL_ERROR, -1];
  for (const code of codes) {
    const server = createSecureServer({ ca: caPem, cert: certPem, key: keyPem, requestCert: true });
    server.on("sessionError", () => undefined);
    server.on("stream", (stream) => {
      stream.on("error", () => undefined);
      if (code === -1) stream.session?.socket.destroy();
      else stream.close(code);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    stack.defer(() => new Promise<void>((resolve) => void server.close(() => resolve())));
    const { assets } = open((server.address() as AddressInfo).port, {
      clock: { ...systemClock, sleep: () => Promise.resolve() },
    });
    await rejectsWith(assets.queryAssets({ query: {} }), "DEPENDENCY_UNAVAILABLE");
    await rejectsWith(assets.getAsset({ assetId }), "DEPENDENCY_UNAVAILABLE");
    await rejectsWith(collect(assets.downloadAsset({ assetId })), "DEPENDENCY_UNAVAILABLE");
    await rejectsWith(assets.uploadAsset(chunks(new Uint8Array(10))), "DEPENDENCY_UNAVAILABLE");
  }
});

test("in memory the same doors are locked", async () => {
  const served = handlers();
  const as = (service: string, principal?: ReturnType<typeof gatewayPrincipal>) =>
    inMemoryClient(AssetService, { routes: served.routes, caller: { service, ...(principal ? { principal } : {}) } });
  assert.equal((await as("gatewayd", gatewayPrincipal()).getAsset({ tenantId, assetId })).name, "gatewayd key_1");
  await rejectsWith(
    as("gatewayd", gatewayPrincipal()).getAsset({ tenantId: newId("tenant"), assetId }),
    "TENANT_MISMATCH",
  );
  await rejectsWith(as("billaged").getAsset({ assetId }), "CALLER_NOT_ALLOWED");
  await rejectsWith(as("metald").getAsset({ assetId: "" }), "INVALID_REQUEST");
  await rejectsWith(as("metald").getAsset({ assetId: "missing" }), "NOT_FOUND");
  await rejectsWith(as("gatewayd").listAssets({}), "UNIMPLEMENTED");
});

async function collect<T>(messages: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const message of messages) all.push(message);
  return all;
}

async function* chunks(...values: (Uint8Array | undefined)[]) {
  for (const value of values) {
    yield await Promise.resolve(value === undefined ? {} : { part: { case: "chunk" as const, value } });
  }
}

function post(
  session: ReturnType<typeof connectHttp2>,
  path: string,
  body: Uint8Array,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/proto",
      ...headers,
    });
    let status = 0;
    let text = "";
    stream.on("response", (response) => (status = response[":status"] ?? 0));
    stream.on("data", (chunk: Buffer) => (text += chunk.toString()));
    stream.on("end", () => resolve({ status, body: text }));
    stream.on("error", reject);
    stream.end(body);
  });
}

function rawExchange(port: number, request: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connectTcp({ host: "127.0.0.1", port }, () => socket.write(request));
    let text = "";
    socket.on("data", (chunk) => (text += chunk.toString()));
    socket.on("error", () => undefined);
    socket.on("close", () => resolve(text));
  });
}
