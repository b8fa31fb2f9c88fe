import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { createReadStream, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { AssetKind, AssetService, StagingMethod } from "@unkey/api/asset";
import { isServiceError, newId } from "@unkey/base";
import { startDaemon } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { callOptions, mintPrincipal, openRpcChannel } from "@unkey/rpc";
import { readConfig, startAssetManager } from "../src/index.ts";

test("the daemon stores, stages and serves over mutual TLS, and keeps what it has across a restart", async () => {
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "assetmanagerd-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const jails = join(dir, "jails");
  mkdirSync(jails);
  const authority = Authority.open(join(dir, "ca"), { commonName: "Test" });
  const identityOf = (service: string) => {
    const path = join(dir, service);
    ensureIdentity(authority, path, { id: { trustDomain: "unkey.test", service } });
    return path;
  };
  const env = {
    UNKEY_ASSETMANAGERD_DATA_DIR: join(dir, "data"),
    UNKEY_ASSETMANAGERD_STAGING_ROOTS: jails,
    UNKEY_ASSETMANAGERD_IDENTITY_DIR: identityOf("assetmanagerd"),
    UNKEY_ASSETMANAGERD_LISTEN_PORT: "0",
    UNKEY_ASSETMANAGERD_HEALTH_PORT: "0",
    UNKEY_ASSETMANAGERD_ADDRESS_FILE: join(dir, "address.json"),
  };
  const start = () =>
    startDaemon({ name: "assetmanagerd", env, readConfig, start: startAssetManager, write: () => undefined });
  const open = (service: string) => {
    const identity = stack.use(IdentitySource.open(identityOf(service)));
    const channel = openRpcChannel({ peer: "assetmanagerd", address: { file: join(dir, "address.json") }, identity });
    return { identity, assets: stack.use(channel).client(AssetService) };
  };

  const tenantId = newId("tenant");
  const content = randomBytes(5_000_000);
  const digest = `sha256:${createHash("sha256").update(content).digest("hex")}`;
  async function* upload() {
    const header = {
      tenantId,
      name: "rootfs",
      kind: AssetKind.ROOTFS,
      digest,
      sizeBytes: BigInt(content.length),
      labels: {},
    };
    yield await Promise.resolve({ part: { case: "header" as const, value: header } });
    for (let at = 0; at < content.length; at += 1024 * 1024) {
      yield { part: { case: "chunk" as const, value: content.subarray(at, at + 1024 * 1024) } };
    }
  }

  const first = await start();
  const builderd = open("builderd");
  const metald = open("metald");
  const gatewayd = open("gatewayd");
  const { assetId } = await builderd.assets.uploadAsset(upload());
  const { staged, lease } = await metald.assets.prepareAssets({
    tenantId,
    leaseKey: "vm_1",
    placements: [{ assetId, fileName: "rootfs" }],
    targetDir: join(jails, "vm_1"),
    leaseMs: 60_000n,
  });
  assert.equal(staged[0]?.method, StagingMethod.HARD_LINK);
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(staged[0].path)) hash.update(chunk as Buffer);
  assert.equal(`sha256:${hash.digest("hex")}`, digest);
  const health = await first.health.report();
  assert.equal(health.status, "ok");
  assert.equal(health.layers["mtls"]?.active, true);
  assert.equal(await first.stop(), true);

  const second = await start();
  stack.use(second);
  const principalToken = mintPrincipal({
    identity: gatewayd.identity.current,
    principal: { tenantId, subject: "key_1", roles: ["owner"], requestId: "req_1" },
    nowMs: Date.now(),
  });
  await assert.rejects(gatewayd.assets.deleteAsset({ tenantId, assetId }, callOptions({ principalToken })), (error) =>
    isServiceError(error, "ASSET_IN_USE"),
  );
  await metald.assets.releaseLease({ tenantId, leaseId: lease!.leaseId });
  let received = 0;
  for await (const { chunk } of metald.assets.downloadAsset({ tenantId, assetId })) received += chunk.length;
  assert.equal(received, content.length);
  const usage = await gatewayd.assets.getStorageUsage({ tenantId }, callOptions({ principalToken }));
  assert.equal(usage.storedBytes, BigInt(content.length));
});
