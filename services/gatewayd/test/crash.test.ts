import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { DescService } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import { ImageSourceSchema } from "@unkey/api/builder";
import { ResourcesSchema } from "@unkey/api/common";
import { CreateDeploymentRequestSchema } from "@unkey/api/gateway";
import { type DeploymentId, gib, mib, newId, systemClock } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { inMemoryClient, type RpcChannel } from "@unkey/rpc";
import { openSqlite, type Sql } from "@unkey/sql";
import { HostDirectory } from "../src/adapters/host-directory.ts";
import { Platform } from "../src/adapters/platform.ts";
import { assembleDeployer } from "../src/deploy/deployer.ts";
import { isTerminal } from "../src/domain/deployment.ts";
import { newKey } from "../src/service/keys.ts";
import { AppStore } from "../src/store/app-store.ts";
import { DeploymentStore } from "../src/store/deployment-store.ts";
import { KeyStore } from "../src/store/key-store.ts";
import { migrations } from "../src/store/schema.ts";
import { WorkStore } from "../src/store/work-store.ts";
import { FakeAggregator } from "./harness/fake-aggregator.ts";
import { FakeBuilderd } from "./harness/fake-builderd.ts";
import { FakeMetald } from "./harness/fake-metald.ts";
import { Fate, mortalSql } from "./harness/mortal.ts";
import { exitingProgram, silentProgram } from "./harness/programs.ts";

const tenantId = newId("tenant");
const image = create(ImageSourceSchema, { source: { case: "reference", value: "hello:1" } });

interface World extends AsyncDisposable {
  readonly sql: Sql;
  readonly metald: FakeMetald;
  readonly builderd: FakeBuilderd;
  readonly deployments: DeploymentStore;
  readonly apps: AppStore;
  accept(app: string): Promise<DeploymentId>;
  /** Runs a gateway until the deployment is terminal or the gateway is killed; answers how many points it passed. */
  live(deploymentId: DeploymentId, killAt: number): Promise<number>;
}

let identity: IdentitySource;
const shared = new AsyncDisposableStack();
before(async () => {
  const dir = await mkdtemp(join(tmpdir(), "gatewayd-crash-"));
  shared.defer(() => rm(dir, { recursive: true, force: true }));
  const authority = Authority.open(join(dir, "pki"), { commonName: "test" });
  ensureIdentity(authority, join(dir, "identity"), { id: { trustDomain: "test", service: "gatewayd" } });
  identity = shared.use(IdentitySource.open(join(dir, "identity")));
});
after(() => shared.disposeAsync());

async function world(): Promise<World> {
  await using stack = new AsyncDisposableStack();
  const sql = stack.use(await openSqlite({ path: ":memory:", migrations }));
  const nowMs = Date.now();
  const { key, digest } = newKey(
    { tenantId, name: "test", scopes: ["*"], expiresAtMs: 0, nowMs },
    (n) => new Uint8Array(n),
  );
  await new KeyStore(sql).bootstrap(key, digest);

  let fate = new Fate(0);
  const metald = new FakeMetald({ run: silentProgram("running\n") });
  const builderd = new FakeBuilderd();
  metald.before = metald.after = builderd.before = builderd.after = () => fate.point();
  const principal = { tenantId, subject: "gatewayd", roles: [], requestId: "req_1" };
  const channel = (routes: FakeMetald["routes"]): RpcChannel => ({
    client: <S extends DescService>(service: S) =>
      inMemoryClient(service, { routes, caller: { service: "gatewayd", principal } }),
    ping: async () => undefined,
    [Symbol.asyncDispose]: async () => undefined,
  });
  const deployments = new DeploymentStore(sql);
  const apps = new AppStore(sql);

  const live = async (deploymentId: DeploymentId, killAt: number): Promise<number> => {
    fate = new Fate(killAt);
    const mine = fate;
    const mortal = mortalSql(sql, () => mine);
    const log = createLogger({ write: () => undefined });
    const hosts = new HostDirectory({ hosts: [{ name: "one", channel: channel(metald.routes) }], log });
    const platform = new Platform({
      identity,
      builder: channel(builderd.routes),
      billing: channel(new FakeAggregator().routes),
      hosts,
    });
    const { executor } = assembleDeployer({
      workStore: new WorkStore(mortal),
      appStore: new AppStore(mortal),
      platform,
      routes: { refresh: async () => undefined, drain: async () => undefined },
      // The app's health is what its host says: a VM that runs serves.
      probe: async ({ host }) =>
        metald.alive.some((vm) => vm.ipAddress === host && vm.state === 4)
          ? { healthy: true }
          : { healthy: false, because: "not running" },
      clock: systemClock,
      log,
      random: Math.random,
      owner: "replica",
      leaseMs: 60_000,
      patienceMs: 0,
    });
    try {
      await executor.start();
      while (!mine.dead && !isTerminal((await deployments.get(tenantId, deploymentId)).state)) {
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    } catch {
      assert.ok(mine.dead, "only a killed gateway fails to start");
    }
    mine.dead ||= killAt > 0; // nothing that still runs may have an effect
    await executor[Symbol.asyncDispose]();
    return mine.count;
  };

  const accept = async (app: string) => {
    const { deploymentId } = await deployments.create({
      tenantId,
      deploymentId: newId("dep"),
      appId: newId("app"),
      appName: app,
      request: create(CreateDeploymentRequestSchema, {
        app,
        image,
        vmCount: 2,
        resources: create(ResourcesSchema, { vcpuCount: 1, memoryBytes: BigInt(96 * mib), diskBytes: BigInt(gib) }),
      }),
      withCredentials: false,
      nowMs: Date.now(),
      maxOpen: 10,
    });
    return deploymentId;
  };
  const owned = stack.move();
  return { sql, metald, builderd, deployments, apps, accept, live, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** Kills a gateway at every point of `scenario` in turn; its successor has to bring it to the same end. */
async function atEveryPoint(
  scenario: (world: World, run: (deploymentId: DeploymentId) => Promise<void>) => Promise<void>,
): Promise<number> {
  let points = 1;
  for (let killAt = 0; killAt <= points; killAt++) {
    await using around = await world();
    let counted = false;
    await scenario(around, async (deploymentId) => {
      const passed = await around.live(deploymentId, killAt);
      if (killAt === 0 && !counted) points = passed;
      counted = true;
      if (killAt > 0) await around.live(deploymentId, 0);
    });
  }
  return points;
}

test("a gateway killed at any point of a deployment: its successor finishes it", async (t) => {
  const points = await atEveryPoint(async (around, run) => {
    const id = await around.accept("app");
    await run(id);
    const row = await around.deployments.get(tenantId, id);
    assert.equal(row.state, "succeeded", row.failure?.message ?? "");
    assert.equal(around.metald.alive.length, 2);
    const { routes } = await around.apps.routes();
    assert.deepEqual(
      routes[0]?.upstreams.map(({ vmId }) => vmId).toSorted(),
      around.metald.alive.map(({ vmId }) => vmId).toSorted(),
    );
    assert.equal(around.builderd.builds.size, 1);
    assert.equal(around.metald.reservations.size, 0, "no room stays reserved");
  });
  t.diagnostic(`killed at each of ${points} points`);
  assert.ok(points > 50);
});

test("a gateway killed at any point of a release that replaces another: one release is left", async (t) => {
  const points = await atEveryPoint(async (around, run) => {
    const first = await around.accept("app");
    await around.live(first, 0);
    const old = new Set(around.metald.alive.map(({ vmId }) => vmId));
    const id = await around.accept("app");
    await run(id);
    const row = await around.deployments.get(tenantId, id);
    assert.equal(row.state, "succeeded", row.failure?.message ?? "");
    assert.deepEqual(
      around.metald.alive.map(({ vmId }) => vmId).toSorted(),
      row.vms.map(({ vmId }) => vmId as string).toSorted(),
    );
    assert.ok(around.metald.alive.every(({ vmId }) => !old.has(vmId)));
  });
  t.diagnostic(`killed at each of ${points} points`);
});

test("a gateway killed at any point of a failing deployment: nothing stays behind", async (t) => {
  const points = await atEveryPoint(async (around, run) => {
    around.metald.run = exitingProgram(3, "broken\n");
    const id = await around.accept("app");
    await run(id);
    const row = await around.deployments.get(tenantId, id);
    assert.equal(row.state, "failed");
    assert.equal(row.failure?.reason, "APP_EXITED", row.failure?.message ?? "");
    assert.deepEqual(row.failure?.lastLines, ["broken"]);
    assert.deepEqual(around.metald.alive, []);
    assert.deepEqual((await around.apps.routes()).routes[0]?.upstreams, []);
  });
  t.diagnostic(`killed at each of ${points} points`);
});

test("a gateway killed at any point of a cancelled deployment: nothing stays behind", async (t) => {
  const points = await atEveryPoint(async (around, run) => {
    const id = await around.accept("app");
    await around.live(id, 30); // well into it
    await around.deployments.requestCancel(tenantId, id, Date.now());
    await run(id);
    const row = await around.deployments.get(tenantId, id);
    assert.equal(row.state, "cancelled");
    assert.deepEqual(around.metald.alive, []);
  });
  t.diagnostic(`killed at each of ${points} points`);
});

test("a login that a killed gateway held in memory fails the deployment by name", async () => {
  await using around = await world();
  const request = create(CreateDeploymentRequestSchema, {
    app: "app",
    image,
    vmCount: 1,
    resources: create(ResourcesSchema, { vcpuCount: 1, memoryBytes: BigInt(96 * mib), diskBytes: BigInt(gib) }),
  });
  const { deploymentId } = await around.deployments.create({
    tenantId,
    deploymentId: newId("dep"),
    appId: newId("app"),
    appName: "app",
    request,
    withCredentials: true,
    nowMs: Date.now(),
    maxOpen: 10,
  });
  await around.live(deploymentId, 0);
  const row = await around.deployments.get(tenantId, deploymentId);
  assert.equal(row.failure?.reason, "CREDENTIALS_LOST");
  assert.equal(around.builderd.builds.size, 0);
});
