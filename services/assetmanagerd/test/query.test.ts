import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetService } from "@unkey/api/asset";
import { BuilderService, BuildState } from "@unkey/api/builder";
import { newId, ServiceError, systemClock } from "@unkey/base";
import { createLogger, Metrics, startDaemon } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { callerOf, callOptions, listenRpc, mintPrincipal, openRpcChannel } from "@unkey/rpc";
import { readConfig, startAssetManager } from "../src/index.ts";
import { bytes, openFixture, rejectsWith, uploadOf } from "./fixture.ts";

test("without a builder a query that finds nothing says which setting is missing", async () => {
  await using assets = await openFixture();
  const gateway = assets.as("gatewayd");
  assert.deepEqual((await gateway.queryAssets({ query: {} })).assets, []);
  await rejectsWith(gateway.queryAssets({ query: {}, buildImage: "nginx" }), "BUILDS_NOT_CONFIGURED");
});

test("a query builds what it does not find: once, and for the principal that asked", async () => {
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "assets-query-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const authority = Authority.open(join(dir, "ca"), { commonName: "Test" });
  const identityOf = (service: string) => {
    const path = join(dir, service);
    ensureIdentity(authority, path, { id: { trustDomain: "unkey.test", service } });
    return path;
  };
  // A builderd that keeps the contract about idempotency keys, and counts.
  const builds = new Map<string, { buildId: string; state: BuildState; createdAtMs: number; image: string }>();
  const callers: (string | undefined)[] = [];
  const builder = stack.use(
    await listenRpc({
      routes: (router) =>
        void router.service(BuilderService, {
          buildImage: ({ tenantId, idempotencyKey, image }, context) => {
            const { service, subject, tenantId: principal } = callerOf(context);
            callers.push(`${service} ${subject} ${principal === tenantId}`);
            if (image?.source.case !== "reference") throw new ServiceError("INVALID_REQUEST", "image: no reference");
            const created = { buildId: newId("build"), state: BuildState.PENDING, createdAtMs: Date.now() };
            const build = builds.get(idempotencyKey) ?? { ...created, image: image.source.value };
            builds.set(idempotencyKey, build);
            return { ...build, tenantId, createdAtMs: BigInt(build.createdAtMs) };
          },
        }),
      identity: stack.use(IdentitySource.open(identityOf("builderd"))),
      host: "127.0.0.1",
      port: 0,
      log: createLogger({ write: () => undefined }),
      metrics: new Metrics(),
      clock: systemClock,
    }),
  );
  writeFileSync(join(dir, "builderd.json"), JSON.stringify({ addresses: { rpc: `${builder.host}:${builder.port}` } }));
  stack.use(
    await startDaemon({
      name: "assetmanagerd",
      env: {
        UNKEY_ASSETMANAGERD_DATA_DIR: join(dir, "data"),
        UNKEY_ASSETMANAGERD_IDENTITY_DIR: identityOf("assetmanagerd"),
        UNKEY_ASSETMANAGERD_LISTEN_PORT: "0",
        UNKEY_ASSETMANAGERD_HEALTH_PORT: "0",
        UNKEY_ASSETMANAGERD_ADDRESS_FILE: join(dir, "address.json"),
        UNKEY_ASSETMANAGERD_BUILDERD_ADDRESS: `file:${join(dir, "builderd.json")}`,
      },
      readConfig,
      start: startAssetManager,
      write: () => undefined,
    }),
  );
  const open = (service: string) => {
    const identity = stack.use(IdentitySource.open(identityOf(service)));
    const channel = openRpcChannel({ peer: "assetmanagerd", address: { file: join(dir, "address.json") }, identity });
    return { identity, assets: stack.use(channel).client(AssetService) };
  };
  const gatewayd = open("gatewayd");
  const tenantId = newId("tenant");
  const options = callOptions({
    principalToken: mintPrincipal({
      identity: gatewayd.identity.current,
      principal: { tenantId, subject: "key_1", roles: ["owner"], requestId: "req_1" },
      nowMs: Date.now(),
    }),
  });
  const ask = (buildImage: string) =>
    gatewayd.assets.queryAssets({ query: { tenantId, kind: AssetKind.ROOTFS }, buildImage }, options);
  const first = await ask("nginx");
  assert.deepEqual(first.assets, []);
  assert.match(first.buildId, /^build_/);
  const again = await Promise.all([ask("nginx"), ask("nginx")]);
  for (const { buildId } of again) assert.equal(buildId, first.buildId);
  assert.notEqual((await ask("redis")).buildId, first.buildId);
  assert.deepEqual(new Set(callers), new Set(["assetmanagerd key_1 true"]));
  assert.equal(builds.size, 2);

  // One that failed just now is answered; one that failed long ago is built again.
  const build = [...builds.values()].find(({ image }) => image === "nginx");
  Object.assign(build!, { state: BuildState.FAILED });
  assert.equal((await ask("nginx")).buildId, first.buildId);
  Object.assign(build!, { createdAtMs: Date.now() - 3_600_000 });
  const second = await ask("nginx");
  assert.notEqual(second.buildId, first.buildId);
  assert.equal((await ask("nginx")).buildId, second.buildId);

  const rootfs = await open("builderd").assets.uploadAsset(uploadOf(bytes("there"), { tenantId }));
  const found = await ask("postgres");
  assert.deepEqual([found.assets.map(({ assetId }) => assetId), found.buildId], [[rootfs.assetId], ""]);
  await rejectsWith(
    open("metald").assets.queryAssets({ query: { tenantId, name: "nowhere" }, buildImage: "nginx" }),
    "PRINCIPAL_REQUIRED",
  );
});
