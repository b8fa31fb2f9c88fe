import assert from "node:assert/strict";
import { connect as connectHttp2 } from "node:http2";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import { AssetService, GetAssetRequestSchema } from "@unkey/api/asset";
import { newId, ServiceError } from "@unkey/base";
import { callerOf, callOptions, inMemoryClient } from "./index.ts";
import {
  assetId,
  chunks,
  collect,
  gatewayPrincipal,
  handlers,
  identityOf,
  lines,
  mint,
  open,
  post,
  rejectsWith,
  startServer,
  tenantId,
} from "./testing/rpc-fixture.ts";

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
