import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import type { DescService } from "@bufbuild/protobuf";
import { type Clock, newId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { inMemoryClient, type RpcChannel } from "@unkey/rpc";
import { openSqlite, type Sql } from "@unkey/sql";
import { AuditLog } from "../src/api/audit-log.ts";
import { Keyring } from "../src/api/keyring.ts";
import { RateLimiter } from "../src/api/rate-limiter.ts";
import { assembleRegistry } from "../src/registry/registry.ts";
import { RegistryGate } from "../src/registry/registry-gate.ts";
import type { Sweeper } from "../src/registry/sweeper.ts";
import { newKey } from "../src/service/keys.ts";
import { AuditStore } from "../src/store/audit-store.ts";
import { KeyStore } from "../src/store/key-store.ts";
import { migrations } from "../src/store/schema.ts";
import { FakeAssetmanagerd } from "./harness/fake-assetmanagerd.ts";
import { Fate, mortalSql } from "./harness/mortal.ts";
import { digestOf, type ImageFixture, image, octets, RegistryApi } from "./registry/client.ts";

const tenantId = newId("tenant");
const dayMs = 86_400_000;

interface Life extends AsyncDisposable {
  readonly api: RegistryApi;
  readonly sweeper: Sweeper;
}

/** What survives a process: the database and assetmanagerd. */
class World implements AsyncDisposable {
  readonly assets = new FakeAssetmanagerd();
  readonly sql: Sql;
  nowMs = Date.now();
  readonly #secret: string;

  private constructor(sql: Sql, secret: string) {
    this.sql = sql;
    this.#secret = secret;
  }

  static async open(): Promise<World> {
    const sql = await openSqlite({ path: ":memory:", migrations });
    const options = { tenantId, name: "test", scopes: ["*"], expiresAtMs: 0, nowMs: Date.now() };
    const { key, secret, digest } = newKey(options, (n) => new Uint8Array(n));
    await new KeyStore(sql).bootstrap(key, digest);
    return new World(sql, secret);
  }

  /** A registry that is killed at its n-th contact with database or assets; 0 for one that lives on. */
  async begin(fate: Fate): Promise<Life> {
    const { assets, sql } = this;
    assets.before = assets.after = () => fate.point();
    const principal = { tenantId, subject: "gatewayd", roles: [], requestId: "req_1" };
    const caller = { service: "gatewayd", principal };
    const channel: RpcChannel = {
      client: <S extends DescService>(service: S) => inMemoryClient(service, { routes: assets.routes, caller }),
      ping: async () => undefined,
      [Symbol.asyncDispose]: async () => undefined,
    };
    const clock: Clock = {
      nowMs: () => this.nowMs,
      monotonicNs: () => process.hrtime.bigint(),
      sleep: (ms) => new Promise((resolve) => setTimeout(resolve, Math.min(ms, 5))),
    };
    const log = createLogger({ write: () => undefined });
    const metrics = new Metrics();
    const gate = new RegistryGate({
      keyring: new Keyring({ store: new KeyStore(sql), clock }),
      limiter: new RateLimiter({ burst: 1e6, perSecond: 1e6 }, clock),
      audit: new AuditLog({ store: new AuditStore(sql), clock, log, metrics }),
      log,
    });
    const { handler, sweeper } = assembleRegistry({
      sql: mortalSql(sql, () => fate),
      assets: channel,
      platform: { call: () => ({}) },
      gate,
      isOwnHost: () => false,
      limits: { maxBlobBytes: 1e9, quotaBytes: 1e9, graceMs: dayMs, untaggedMs: dayMs },
      clock,
      log,
      metrics,
      abort: new AbortController().signal,
    });
    const server = createServer((request, response) => {
      void handler.serve(request as unknown as Http2ServerRequest, response as unknown as Http2ServerResponse);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    return {
      api: new RegistryApi({ name: "crash", origin, authorization: `Bearer ${this.#secret}` }),
      sweeper,
      [Symbol.asyncDispose]: async () => {
        server.closeAllConnections();
        await new Promise<void>((resolve) => server.close(() => resolve()));
      },
    };
  }

  async rows(table: string): Promise<number> {
    return (await this.sql.one<{ count: number }>(`SELECT COUNT(*) AS count FROM ${table}`))?.count ?? 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.sql[Symbol.asyncDispose]();
  }
}

const repository = "team/app";

/** As a client pushes: it ends at the first refusal. */
async function push(api: RegistryApi, one: ImageFixture): Promise<boolean> {
  for (const blob of [one.config, ...one.layers]) {
    if ((await api.blob("HEAD", repository, digestOf(blob))).status === 200) continue;
    const begun = await api.begin(repository);
    if (begun.status !== 202) return false;
    const sent = await api.send("PATCH", begun.header("location"), { headers: octets, body: blob });
    if (sent.status !== 202) return false;
    const query = { digest: digestOf(blob) };
    const put = await api.send("PUT", sent.header("location"), { query, headers: { "content-length": "0" } });
    if (put.status !== 201) return false;
  }
  return (await api.pushManifest(repository, "latest", one)).status === 201;
}

/** No tag leads to a manifest, and no manifest to a blob, that cannot be read. */
async function mustBeWhole(api: RegistryApi, images: readonly ImageFixture[]): Promise<string | undefined> {
  const answer = await api.manifest("GET", repository, "latest");
  if (answer.status === 404) return undefined;
  assert.equal(answer.status, 200);
  const one = images.find(({ digest }) => digest === answer.header("docker-content-digest"));
  assert.ok(one, "the tag leads to something that was pushed");
  assert.deepEqual(answer.body, one.bytes);
  for (const blob of [one.config, ...one.layers]) {
    assert.deepEqual((await api.blob("GET", repository, digestOf(blob))).body, blob);
  }
  return one.digest;
}

/** Deletes what is there and lets the time pass after which nothing may be left anywhere. */
async function mustEndEmpty(world: World): Promise<void> {
  await using life = await world.begin(new Fate(0));
  const answer = await life.api.manifest("HEAD", repository, "latest");
  if (answer.status === 200) await life.api.manifest("DELETE", repository, answer.header("docker-content-digest"));
  for (let pass = 0; pass < 4; pass++) {
    world.nowMs += 2 * dayMs;
    await life.sweeper.pass(new AbortController().signal);
  }
  for (const table of ["upload", "tag", "manifest", "reference", "link", "blob", "repository"]) {
    assert.equal(await world.rows(`registry_${table}`), 0, `rows of registry_${table}`);
  }
  const left = [...world.assets.held.values()].filter(({ asset }) => asset.state === 1 || asset.state === 2);
  assert.deepEqual(
    left.map(({ asset }) => asset.assetId),
    [],
    "assets that nobody will ever release",
  );
}

test("a push that is killed anywhere leaves whole images, and can be done again", { timeout: 300_000 }, async () => {
  const first = image({ layers: [Buffer.alloc(700_000, "first")] });
  const second = image({ layers: [Buffer.alloc(700_000, "second"), ...first.layers] });
  let points = 0;
  for (let killAt = 1, alive = false; !alive; killAt++) {
    await using world = await World.open();
    {
      await using before = await world.begin(new Fate(0));
      assert.ok(await push(before.api, first));
    }
    const fate = new Fate(killAt);
    {
      await using dying = await world.begin(fate);
      alive = await push(dying.api, second);
      assert.equal(alive, !fate.dead, `killed at ${killAt}`);
    }
    points = fate.count;
    await using life = await world.begin(new Fate(0));
    const tagged = await mustBeWhole(life.api, [first, second]);
    assert.ok(tagged !== undefined, "the first push was answered, so it stays");
    if (alive) assert.equal(tagged, second.digest);
    assert.ok(await push(life.api, second), `again after ${killAt}`);
    assert.equal(await mustBeWhole(life.api, [second]), second.digest);
    await mustEndEmpty(world);
  }
  assert.ok(points > 40, `${points} points`);
});

test("a deletion and a sweep that are killed anywhere are finished later", { timeout: 300_000 }, async () => {
  const one = image({ layers: [Buffer.alloc(1000, "one")] });
  for (let killAt = 1, alive = false; !alive; killAt++) {
    await using world = await World.open();
    {
      await using before = await world.begin(new Fate(0));
      assert.ok(await push(before.api, one));
      const begun = await before.api.begin(repository);
      await before.api.send("PATCH", begun.header("location"), { headers: octets, body: "abandoned" });
    }
    const fate = new Fate(killAt);
    {
      await using dying = await world.begin(fate);
      await dying.api.manifest("DELETE", repository, one.digest);
      const { signal } = new AbortController();
      for (let pass = 0; pass < 3; pass++) {
        world.nowMs += 2 * dayMs;
        await dying.sweeper.pass(signal).catch(() => undefined);
      }
      alive = !fate.dead;
    }
    {
      await using life = await world.begin(new Fate(0));
      await mustBeWhole(life.api, [one]);
      assert.ok(await push(life.api, one), `pushed again after ${killAt}`);
      assert.equal(await mustBeWhole(life.api, [one]), one.digest);
    }
    await mustEndEmpty(world);
  }
});
