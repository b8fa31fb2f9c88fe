import assert from "node:assert/strict";
import { connect as connectHttp2, constants } from "node:http2";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import type { UploadAssetRequest } from "@unkey/api/asset";
import { type Clock, newId, systemClock } from "@unkey/base";
import { Authority, type IdentitySource } from "@unkey/pki";
import { callOptions } from "./index.ts";
import {
  assetId,
  chunks,
  collect,
  dir,
  hourMs,
  identityOf,
  lines,
  mint,
  open,
  post,
  rawExchange,
  rejectsWith,
  startServer,
  tenantId,
} from "./testing/rpc-fixture.ts";

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
