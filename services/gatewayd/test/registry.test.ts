import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { constants } from "node:http2";
import { join } from "node:path";
import { after, before, beforeEach, suite, test } from "node:test";
import { connect } from "node:tls";
import { AssetState } from "@unkey/api/asset";
import { newId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { newKey } from "../src/service/keys.ts";
import { KeyStore } from "../src/store/key-store.ts";
import { migrations } from "../src/store/schema.ts";
import { askH2, openH2 } from "./harness/http.ts";
import { type Gateway, type Surroundings, surroundings } from "./harness/platform.ts";
import { rest } from "./harness/rest.ts";
import { digestOf, fresh, image, index, octets, RegistryApi } from "./registry/client.ts";
import { created, deleted, pushAll } from "./registry/conformance.contract.ts";
import { targetOf } from "./registry/targets.ts";

const mib = 1024 * 1024;
let around: Surroundings;
let gateway: Gateway;
let api: RegistryApi;
const settings = {
  BLOB_LIMIT: "1MiB",
  REGISTRY_QUOTA: "3MiB",
  REGISTRY_GRACE: "1s",
  REGISTRY_UNTAGGED: "2s",
  REGISTRY_SWEEP: "200ms",
};

before(async () => {
  around = await surroundings();
  gateway = await around.start(settings);
  api = new RegistryApi(targetOf(gateway));
});
after(async () => {
  await gateway?.[Symbol.asyncDispose]();
  await around?.[Symbol.asyncDispose]();
});
beforeEach(() => {
  around.assetmanagerd.before = () => undefined;
  around.assetmanagerd.after = () => undefined;
});

async function keyWith(scopes: readonly string[]): Promise<string> {
  const { secret } = await gateway.client().createApiKey({ name: "test", scopes: [...scopes] });
  return secret;
}

async function eventually(what: string, isSo: () => Promise<boolean> | boolean): Promise<void> {
  for (let i = 0; i < 400; i++) {
    if (await isSo()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail(`it never came to this: ${what}`);
}

suite("who may do what", () => {
  test("without a key every client is told how to log in", async () => {
    const { ca, origin } = api.target;
    const stranger = new RegistryApi({ name: "stranger", origin, ...(ca === undefined ? {} : { ca }) });
    for (const path of ["/v2/", "/v2/a/tags/list"]) {
      const answer = await stranger.send("GET", path);
      assert.equal(answer.status, 401);
      assert.equal(answer.header("www-authenticate"), 'Basic realm="Unkey Deploy"');
      assert.deepEqual(answer.codes(), ["UNAUTHORIZED"]);
      assert.match(answer.body.toString(), /docker login/);
      assert.match(answer.header("x-request-id"), /^req_/);
    }
  });

  test("a bearer key is as good as a password; a wrong one and none at all are not", async () => {
    const { target } = api;
    const as = (authorization: string) => new RegistryApi({ ...target, authorization }).send("GET", "/v2/");
    assert.equal((await as(`Bearer ${gateway.key}`)).status, 200);
    const basic = (text: string) => `Basic ${Buffer.from(text).toString("base64")}`;
    assert.equal((await as(basic(`any user:${gateway.key}`))).status, 200);
    for (const wrong of [
      basic("unkey:"),
      basic("unkey"),
      basic(`unkey:unkey_${"0".repeat(64)}`),
      "Basic !",
      "Digest x",
    ]) {
      assert.equal((await as(wrong)).status, 401, wrong);
    }
  });

  test("pulling needs deployments:read, pushing and deleting deployments:write", async () => {
    const one = image();
    await pushAll(api, "scopes", [one.config, ...one.layers]);
    created(await api.pushManifest("scopes", "one", one));
    const reader = new RegistryApi(targetOf(gateway, await keyWith(["deployments:read"])));
    assert.equal((await reader.manifest("GET", "scopes", "one")).status, 200);
    assert.equal((await reader.blob("GET", "scopes", digestOf(one.config))).status, 200);
    for (const refused of [
      await reader.begin("scopes"),
      await reader.pushManifest("scopes", "two", one),
      await reader.manifest("DELETE", "scopes", "one"),
      await reader.blob("DELETE", "scopes", digestOf(one.config)),
    ]) {
      assert.equal(refused.status, 403);
      assert.deepEqual(refused.codes(), ["DENIED"]);
    }
    const stranger = new RegistryApi(targetOf(gateway, await keyWith(["apps:read"])));
    assert.equal((await stranger.manifest("GET", "scopes", "one")).status, 403);
    assert.equal((await stranger.send("GET", "/v2/_catalog")).status, 403);
  });

  test("another tenant sees nothing, mounts nothing and resumes nothing", async () => {
    const one = image();
    const [layer = Buffer.alloc(0)] = one.layers;
    await pushAll(api, "secret", [one.config, layer]);
    created(await api.pushManifest("secret", "one", one));
    const begun = await api.begin("secret");

    await using elsewhere = await otherTenant();
    const other = new RegistryApi({ ...api.target, authorization: elsewhere.authorization });
    assert.deepEqual(((await other.send("GET", "/v2/_catalog")).json() as { repositories: string[] }).repositories, []);
    assert.equal((await other.send("GET", "/v2/secret/tags/list")).status, 404);
    assert.equal((await other.manifest("GET", "secret", "one")).status, 404);
    assert.equal((await other.manifest("GET", "secret", one.digest)).status, 404);
    assert.equal((await other.blob("GET", "secret", digestOf(layer))).status, 404);
    assert.equal((await other.begin("mine", { mount: digestOf(layer), from: "secret" })).status, 202);
    assert.equal((await other.begin("mine", { mount: digestOf(layer) })).status, 202);
    assert.equal((await other.send("GET", begun.header("location"))).status, 404);
    assert.equal((await other.send("PATCH", begun.header("location"), { headers: octets, body: "x" })).status, 404);
    assert.equal((await other.blob("DELETE", "secret", digestOf(layer))).status, 404);
    assert.equal((await other.manifest("DELETE", "secret", one.digest)).status, 404);
    const pushed = await other.pushManifest("secret", "one", one);
    assert.deepEqual(pushed.codes(), ["MANIFEST_BLOB_UNKNOWN"]);
  });

  test("what was pushed and deleted and what was denied is in the audit log", async () => {
    const one = image();
    await pushAll(api, "audited", [one.config, ...one.layers]);
    created(await api.pushManifest("audited", "v1", one));
    deleted(await api.manifest("DELETE", "audited", "v1"));
    const reader = new RegistryApi(targetOf(gateway, await keyWith(["deployments:read"])));
    assert.equal((await reader.manifest("DELETE", "audited", one.digest)).status, 403);
    const { json } = await rest(gateway, "GET", "/v1/audit?page_size=50");
    const events = json["events"] as { action: string; target: string; outcome: string }[];
    const has = (action: string, target: string, outcome: string) =>
      events.some((each) => each.action === action && each.target === target && each.outcome === outcome);
    assert.ok(has("PushManifest", `audited:v1@${one.digest}`, "ok"));
    assert.ok(has("PushBlob", "audited", "ok"));
    assert.ok(has("DeleteManifest", "audited:v1", "ok"));
    assert.ok(has("DeleteManifest", `audited@${one.digest}`, "SCOPE_MISSING"));
  });

  test("the rate of a key bounds it here too", async () => {
    await using limited = await around.start({
      ...settings,
      DATA_DIR: join(around.dir, "limited"),
      RATE_LIMIT_BURST: "3",
      RATE_LIMIT_PER_SECOND: "1",
    });
    const client = new RegistryApi(targetOf(limited));
    const answers = [];
    for (let i = 0; i < 5; i++) answers.push(await client.send("GET", "/v2/"));
    const refused = answers.find(({ status }) => status === 429) ?? assert.fail("nothing was refused");
    assert.deepEqual(refused.codes(), ["TOOMANYREQUESTS"]);
    assert.match(refused.header("retry-after"), /^[1-9]\d*$/);
  });
});

/** A second tenant of the same gateway: tenants are made by nobody's API yet, so its rows are written. */
async function otherTenant(): Promise<AsyncDisposable & { readonly authorization: string }> {
  const sql = await openSqlite({ path: join(around.dataDir, "gatewayd.db"), migrations });
  const tenantId = newId("tenant");
  await sql.run("INSERT INTO tenant (tenant_id, created_at_ms) VALUES (?, 0)", [tenantId]);
  const options = { tenantId, name: "other", scopes: ["*"], expiresAtMs: 0, nowMs: Date.now() };
  const { key, secret, digest } = newKey(options, randomBytes);
  await new KeyStore(sql).insert(key, digest, 10);
  return { authorization: `Bearer ${secret}`, [Symbol.asyncDispose]: () => sql[Symbol.asyncDispose]() };
}

suite("limits", () => {
  test("a blob larger than the limit is refused before, and while, it is sent", async () => {
    const big = fresh(mib + 1);
    const declared = await api.pushBlob("limits", big);
    assert.equal(declared.status, 413);
    const location = (await api.begin("limits")).header("location");
    created202(await api.send("PATCH", location, { headers: octets, body: big.subarray(0, mib) }));
    const more = await api.send("PATCH", location, { headers: octets, body: "x" });
    assert.equal(more.status, 413);
    assert.match(more.body.toString(), /UNKEY_GATEWAYD_BLOB_LIMIT/);
    assert.equal((await api.send("DELETE", location)).status, 204);
  });

  test("a tenant's images together have a limit", async () => {
    const blobs = [fresh(mib), fresh(mib), fresh(mib)];
    const answers = [];
    for (const blob of blobs) answers.push(await api.pushBlob("quota", blob));
    const refused = answers.at(-1);
    assert.equal(refused?.status, 403, "less than 3 MiB were left");
    assert.deepEqual(refused?.codes(), ["DENIED"]);
    for (const blob of blobs) await api.blob("DELETE", "quota", digestOf(blob));
    await eventually("room again", async () => (await api.pushBlob("quota", blobs[2] ?? fresh(1))).status === 201);
    deleted(await api.blob("DELETE", "quota", digestOf(blobs[2] ?? fresh(1))));
  });

  test("Content-Range that contradicts itself or the length", async () => {
    const location = (await api.begin("limits")).header("location");
    for (const range of ["bytes 0-9/10", "9-0", "0-99"]) {
      const answer = await api.send("PATCH", location, {
        headers: { ...octets, "content-range": range },
        body: fresh(10),
      });
      assert.equal(answer.status, 400, range);
      assert.deepEqual(answer.codes(), ["SIZE_INVALID"]);
    }
    assert.equal((await api.send("DELETE", location)).status, 204);
  });

  test("a method that a path does not take", async () => {
    const answer = await api.send("PUT", "/v2/a/tags/list");
    assert.equal(answer.status, 405);
    assert.equal(answer.header("allow"), "GET");
  });
});

function created202(answer: { readonly status: number; readonly body: Buffer }): void {
  assert.equal(answer.status, 202, answer.body.toString());
}

suite("uploads that break off", () => {
  test("a client that vanishes in the middle of a chunk goes on where its bytes ended", async () => {
    const bytes = fresh(600_000);
    const location = (await api.begin("broken")).header("location");
    const at = await vanishAfter(location, bytes, 300_000);
    assert.ok(at > 0 && at <= 300_000, String(at));
    const headers = { ...octets, "content-range": `${at}-${bytes.length - 1}` };
    created202(await api.send("PATCH", location, { headers, body: bytes.subarray(at) }));
    created(
      await api.send("PUT", location, { query: { digest: digestOf(bytes) }, headers: { "content-length": "0" } }),
    );
    assert.deepEqual((await api.blob("GET", "broken", digestOf(bytes))).body, bytes);
    deleted(await api.blob("DELETE", "broken", digestOf(bytes)));
  });

  test("a PUT that breaks off makes no blob", async () => {
    const bytes = fresh(100_000);
    const location = (await api.begin("broken")).header("location");
    const at = await vanishAfter(`${location}?digest=${digestOf(bytes)}`, bytes, 50_000, "PUT");
    assert.ok(at > 0 && at <= 50_000, String(at));
    assert.equal((await api.blob("HEAD", "broken", digestOf(bytes))).status, 404);
    assert.equal((await api.send("DELETE", location)).status, 204);
  });

  test("over HTTP/2 the same", async () => {
    const port = Number(new URL(gateway.apiOrigin).port);
    using session = await openH2({ port, ca: gateway.ca, host: "localhost" });
    const send = (method: string, path: string, body?: Uint8Array) =>
      askH2(
        session,
        {
          ":method": method,
          ":path": path,
          ":authority": `localhost:${port}`,
          authorization: api.target.authorization ?? "",
          "content-type": "application/octet-stream",
        },
        body,
      );
    const bytes = fresh(500_000);
    const location = String((await send("POST", "/v2/h2/blobs/uploads/")).headers["location"]);
    assert.equal((await send("PATCH", location, bytes)).headers["range"], "0-499999");
    assert.equal((await send("PUT", `${location}?digest=${digestOf(bytes)}`)).status, 201);
    assert.deepEqual((await api.blob("GET", "h2", digestOf(bytes))).body, bytes);
    deleted(await api.blob("DELETE", "h2", digestOf(bytes)));
  });
});

test("an HTTP/2 stream that is reset in the middle ends like a connection that breaks", async () => {
  const port = Number(new URL(gateway.apiOrigin).port);
  using session = await openH2({ port, ca: gateway.ca, host: "localhost" });
  const bytes = fresh(100_000);
  const location = (await api.begin("reset")).header("location");
  const kept = Promise.withResolvers<void>();
  around.assetmanagerd.after = (call) => {
    if (call === "appendUpload") kept.resolve();
  };
  const stream = session.request({
    ":method": "PUT",
    ":path": `${location}?digest=${digestOf(bytes.subarray(0, 50_000))}`,
    ":authority": `localhost:${port}`,
    authorization: api.target.authorization ?? "",
    "content-length": String(bytes.length),
  });
  stream.on("error", () => undefined);
  stream.write(bytes.subarray(0, 50_000), () => setTimeout(() => stream.close(constants.NGHTTP2_CANCEL), 200));
  await kept.promise;
  const status = await api.send("GET", location);
  assert.equal(status.status, 204, "the upload is still open");
  assert.equal(status.header("range"), "0-49999");
  assert.equal((await api.blob("HEAD", "reset", digestOf(bytes.subarray(0, 50_000)))).status, 404);
  assert.equal((await api.send("DELETE", location)).status, 204);
});

test("lists are read in pages by their Link headers", async () => {
  const one = image();
  await pushAll(api, "pages", [one.config, ...one.layers]);
  const tags = Array.from({ length: 7 }, (_, i) => `t${i}`);
  for (const tag of tags) created(await api.pushManifest("pages", tag, one));
  const seen: string[] = [];
  let pages = 0;
  for (let path = "/v2/pages/tags/list?n=3"; path !== ""; pages++) {
    const answer = await api.send("GET", path);
    seen.push(...(answer.json() as { tags: string[] }).tags);
    path = /^<(.+)>; rel="next"$/.exec(answer.header("link"))?.[1] ?? "";
  }
  assert.deepEqual([seen, pages], [tags, 3]);
  const none = await api.send("GET", "/v2/pages/tags/list?n=0");
  assert.deepEqual([(none.json() as { tags: string[] }).tags, none.header("link")], [[], ""]);
  assert.equal((await api.send("GET", "/v2/pages/tags/list?n=x")).status, 400);
  const catalog = await api.send("GET", "/v2/_catalog?n=1");
  assert.equal((catalog.json() as { repositories: string[] }).repositories.length, 1);
  assert.match(catalog.header("link"), /^<\/v2\/_catalog\?n=1&last=/);
});

/** Sends the head of a request and part of its body, and is gone; answers how much of it is kept. */
async function vanishAfter(path: string, bytes: Buffer, sent: number, method = "PATCH"): Promise<number> {
  const kept = Promise.withResolvers<void>();
  around.assetmanagerd.after = (call) => {
    if (call === "appendUpload") kept.resolve();
  };
  const port = Number(new URL(gateway.apiOrigin).port);
  const socket = connect({
    port,
    host: "127.0.0.1",
    servername: "localhost",
    ca: gateway.ca,
    ALPNProtocols: ["http/1.1"],
  });
  await new Promise<void>((resolve, reject) => {
    socket.once("secureConnect", () => resolve());
    socket.once("error", reject);
  });
  const head = [
    `${method} ${path} HTTP/1.1`,
    `Host: localhost:${port}`,
    `Authorization: ${api.target.authorization}`,
    "Content-Type: application/octet-stream",
    `Content-Length: ${bytes.length}`,
  ];
  socket.write(`${head.join("\r\n")}\r\n\r\n`);
  socket.write(bytes.subarray(0, sent), () => setTimeout(() => socket.destroy(), 200));
  await kept.promise;
  const status = await api.send("GET", path.split("?", 1)[0] ?? "");
  assert.equal(status.status, 204);
  return Number(status.header("range").split("-")[1]) + 1;
}

suite("what is deleted", () => {
  test("a blob that a manifest refers to stays, and so does a manifest that an index lists", async () => {
    const one = image();
    await pushAll(api, "kept", [one.config, ...one.layers]);
    created(await api.pushManifest("kept", "one", one));
    const refused = await api.blob("DELETE", "kept", digestOf(one.config));
    assert.equal(refused.status, 405);
    assert.deepEqual(refused.codes(), ["UNSUPPORTED"]);
    assert.match(refused.body.toString(), new RegExp(one.digest));
    const list = index([one]);
    created(await api.pushManifest("kept", "list", list));
    assert.equal((await api.manifest("DELETE", "kept", one.digest)).status, 405);
    deleted(await api.manifest("DELETE", "kept", list.digest));
    deleted(await api.manifest("DELETE", "kept", one.digest));
  });

  test("its assets are released, after the grace period those that nothing deleted by name", async () => {
    const one = image();
    await pushAll(api, "released", [one.config, ...one.layers]);
    created(await api.pushManifest("released", "one", one));
    const available = () => heldDigests(AssetState.AVAILABLE);
    const all = [one.digest, digestOf(one.config), ...one.layers.map((layer) => digestOf(layer))];
    for (const digest of all) assert.ok(available().has(digest), digest);
    deleted(await api.manifest("DELETE", "released", one.digest));
    await eventually("the manifest's asset is gone", () => !available().has(one.digest));
    await eventually("the layers' assets are gone", async () => {
      return all.every((digest) => !available().has(digest));
    });
    assert.equal((await api.send("GET", "/v2/released/tags/list")).status, 404);
  });

  test("an upload that nobody continues is given up", async () => {
    const location = (await api.begin("abandoned")).header("location");
    created202(await api.send("PATCH", location, { headers: octets, body: fresh(1000) }));
    assert.ok(around.assetmanagerd.count(AssetState.UPLOADING) > 0);
    await eventually("its asset is gone", async () => around.assetmanagerd.count(AssetState.UPLOADING) === 0);
    assert.equal((await api.send("PATCH", location, { headers: octets, body: "x" })).status, 404);
  });

  test("a manifest that lost its tag goes after its time, one that is tagged stays", async () => {
    const [first, second] = [image(), image()];
    for (const each of [first, second]) {
      await pushAll(api, "moved", [each.config, ...each.layers]);
      created(await api.pushManifest("moved", "latest", each));
    }
    await eventually(
      "the first is gone",
      async () => (await api.manifest("HEAD", "moved", first.digest)).status === 404,
    );
    assert.equal((await api.manifest("HEAD", "moved", second.digest)).status, 200);
    for (const layer of second.layers) assert.equal((await api.blob("GET", "moved", digestOf(layer))).status, 200);
  });

  test("a blob that is pushed again while an equal one is being released is there afterwards", async () => {
    const bytes = fresh(1000);
    created(await api.pushBlob("again", bytes));
    const deleting = Promise.withResolvers<void>();
    const goOn = Promise.withResolvers<void>();
    around.assetmanagerd.before = async (method) => {
      if (method !== "deleteAsset") return;
      deleting.resolve();
      await goOn.promise;
    };
    deleted(await api.blob("DELETE", "again", digestOf(bytes)));
    await deleting.promise;
    const pushed = api.pushBlob("again", bytes);
    setTimeout(() => goOn.resolve(), 200);
    created(await pushed);
    assert.deepEqual((await api.blob("GET", "again", digestOf(bytes))).body, bytes);
    assert.ok(heldDigests(AssetState.AVAILABLE).has(digestOf(bytes)));
  });

  test("a release that fails is tried again", async () => {
    const bytes = fresh(1000);
    created(await api.pushBlob("failing", bytes));
    let failures = 0;
    around.assetmanagerd.before = (method) => {
      if (method === "deleteAsset" && failures++ < 1) throw new Error("on purpose");
    };
    deleted(await api.blob("DELETE", "failing", digestOf(bytes)));
    await eventually("it is released", async () => !heldDigests(AssetState.AVAILABLE).has(digestOf(bytes)));
    assert.ok(failures >= 2);
  });
});

function heldDigests(state: AssetState): Set<string> {
  return new Set(
    [...around.assetmanagerd.held.values()]
      .filter(({ asset }) => asset.state === state)
      .map(({ asset }) => asset.digest),
  );
}

test("assetmanagerd that is down is told as such, and nothing is lost", async () => {
  const bytes = fresh(1000);
  await around.stopFake("assetmanagerd");
  const answer = await api.pushBlob("down", bytes);
  assert.equal(answer.status, 503);
  assert.deepEqual(answer.codes(), ["UNAVAILABLE"]);
  await around.startFake("assetmanagerd");
  created(await api.pushBlob("down", bytes));
});
