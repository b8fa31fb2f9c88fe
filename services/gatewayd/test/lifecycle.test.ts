import assert from "node:assert/strict";
import { test } from "node:test";
import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@unkey/api/common";
import { AppState } from "@unkey/api/gateway";
import { openSqlite } from "@unkey/sql";
import { migrations } from "../src/store/schema.ts";
import { deployAndWait } from "./harness/deploying.ts";
import { ask } from "./harness/http.ts";
import { surroundings } from "./harness/platform.ts";
import { rest } from "./harness/rest.ts";

function reasonOf(error: unknown): string | undefined {
  return error instanceof ConnectError ? error.findDetails(ErrorInfoSchema)[0]?.reason : undefined;
}

test("keys, apps and routes outlive a restart; the bootstrap key is not written anew", async () => {
  await using around = await surroundings();
  let key: string;
  {
    await using gateway = await around.start();
    key = gateway.key;
    await deployAndWait(gateway.client(), { app: "kept" });
  }
  await using gateway = await around.start();
  assert.equal(gateway.key, key);
  assert.equal((await gateway.client().getApp({ app: "kept" })).state, AppState.SERVING);
  const answer = await ask({ port: gateway.ingressPort, ca: gateway.ca, host: "kept.localhost" });
  assert.equal(answer.status, 200);
});

test("a key over its rate is refused with the time to wait, another is not", async () => {
  await using around = await surroundings();
  await using gateway = await around.start({ RATE_LIMIT_BURST: "3", RATE_LIMIT_PER_SECOND: "1" });
  const { secret } = await gateway.client().createApiKey({ name: "other", scopes: ["*"] });
  const answers = [];
  for (let i = 0; i < 3; i++) answers.push(await rest(gateway, "GET", "/v1/apps"));
  const refused = answers.at(-1)!;
  assert.deepEqual(
    answers.map(({ status }) => status),
    [200, 200, 429],
  );
  assert.equal(refused.json["reason"], "RATE_LIMITED");
  assert.equal(refused.headers["retry-after"], "1");
  assert.match(String(refused.headers["ratelimit"]), /^"api-key";r=0;t=\d$/);
  assert.equal((await rest(gateway, "GET", "/v1/apps", { key: secret })).status, 200);
  await assert.rejects(gateway.client().listApps({}), (error: ConnectError) => {
    assert.equal(error.metadata.get("retry-after"), "1");
    return reasonOf(error) === "RATE_LIMITED";
  });
});

test("a key ends by itself at its time", async () => {
  await using around = await surroundings();
  await using gateway = await around.start();
  const client = gateway.client();
  const { secret } = await client.createApiKey({ name: "brief", scopes: ["*"], expiresAtMs: BigInt(Date.now() + 400) });
  const brief = gateway.client({ key: secret });
  await brief.listApps({});
  const stream = brief.watchVms({})[Symbol.asyncIterator]();
  await assert.rejects(stream.next(), (error) => reasonOf(error) === "UNAUTHENTICATED");
  await assert.rejects(brief.listApps({}), (error) => reasonOf(error) === "UNAUTHENTICATED");
});

test("a stop lets calls finish, ends streams by name and takes no more", async () => {
  await using around = await surroundings();
  const gateway = await around.start();
  const client = gateway.client();
  const { vmIds } = await deployAndWait(client, { app: "ending" });
  const entered = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  around.metald.before = async (method) => {
    if (method !== "pauseVm") return;
    entered.resolve();
    await gate.promise;
  };
  const stream = client.watchVms({})[Symbol.asyncIterator]();
  await stream.next();
  const next = stream.next();
  const streamEnded = assert.rejects(next, (error) => reasonOf(error) === "SHUTTING_DOWN");
  const pausing = client.pauseVm({ vmId: vmIds[0]! });
  await entered.promise;
  const stopping = gateway.daemon.stop();
  await streamEnded;
  gate.resolve();
  assert.equal((await pausing).vmId, vmIds[0]);
  assert.equal(await stopping, true, "everything closed in time");
  await assert.rejects(gateway.client().listApps({}));
});

test("an audit log that was changed behind the gateway's back is noticed at the next start", async () => {
  await using around = await surroundings();
  {
    await using gateway = await around.start();
    await gateway.client().createApiKey({ name: "a", scopes: ["*"] });
    await gateway.client().createApiKey({ name: "b", scopes: ["*"] });
    assert.equal((await gateway.daemon.health.report()).layers["audit-chain"]?.active, true);
  }
  {
    await using sql = await openSqlite({ path: `${around.dataDir}/gatewayd.db`, migrations });
    await sql.run("UPDATE audit_event SET actor = 'key_somebody_else' WHERE seq = 1");
  }
  await using gateway = await around.start();
  const layer = (await gateway.daemon.health.report()).layers["audit-chain"];
  assert.equal(layer?.active, false);
  assert.match(layer?.detail ?? "", /^broken at evt_/);
});

test("strangers cannot fill the audit log", async () => {
  await using around = await surroundings();
  await using gateway = await around.start();
  const key = `unkey_${"f".repeat(64)}`;
  for (let i = 0; i < 15; i++) {
    await Promise.all(Array.from({ length: 20 }, () => rest(gateway, "GET", "/v1/apps", { key })));
  }
  await using sql = await openSqlite({ path: `${around.dataDir}/gatewayd.db`, migrations });
  const rows = await sql.one<{ count: number }>("SELECT COUNT(*) AS count FROM audit_event");
  assert.ok((rows?.count ?? 0) >= 100 && (rows?.count ?? 0) < 250, `${rows?.count} rows for 300 refused calls`);
});
