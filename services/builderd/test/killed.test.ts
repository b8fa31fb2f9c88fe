import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { type Build, BuilderService, BuildState } from "@unkey/api/builder";
import { isServiceError, newId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { assembleImage } from "@unkey/oci";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { callOptions, listenRpc, mintPrincipal, openRpcChannel } from "@unkey/rpc";
import { atEnd, fromRegistry, needsRootfs, statesOf, temporary } from "./harness.ts";
import { MemoryAssets } from "./memory-assets.ts";

/*
 * builderd as a process of its own, behind mutual TLS, killed in the middle of its work.
 */

const trustDomain = "unkey.test";
const tenantId = newId("tenant");

async function startWorld(context: TestContext) {
  const directory = await temporary(context);
  const authority = Authority.open(join(directory, "ca"), { commonName: "Test" });
  const identity = (service: string): string => {
    ensureIdentity(authority, join(directory, service), { id: { trustDomain, service } });
    return join(directory, service);
  };
  const open = (service: string): IdentitySource => {
    const source = IdentitySource.open(identity(service), {});
    atEnd(context, async () => source[Symbol.dispose]());
    return source;
  };
  const assets = new MemoryAssets();
  const assetServer = await listenRpc({
    routes: assets.routes,
    identity: open("assetmanagerd"),
    host: "127.0.0.1",
    port: 0,
    log: createLogger({ write: () => undefined }),
    metrics: new Metrics(),
  });
  atEnd(context, async () => assetServer[Symbol.asyncDispose]());

  const dataDir = join(directory, "data");
  const addressFile = join(directory, "address.json");
  const lines: string[] = [];
  let child: ChildProcess | undefined;
  const start = async (toolsBefore = ""): Promise<void> => {
    await rm(addressFile, { force: true });
    const started = spawn(process.execPath, [join(import.meta.dirname, "../src/main.ts")], {
      env: {
        PATH: `${toolsBefore}:${process.env["PATH"]}`,
        UNKEY_BUILDERD_DATA_DIR: dataDir,
        UNKEY_BUILDERD_IDENTITY_DIR: identity("builderd"),
        UNKEY_BUILDERD_LISTEN_PORT: "0",
        UNKEY_BUILDERD_HEALTH_PORT: "0",
        UNKEY_BUILDERD_ADDRESS_FILE: addressFile,
        UNKEY_BUILDERD_ASSETMANAGERD_ADDRESS: `127.0.0.1:${assetServer.port}`,
      },
      stdio: ["ignore", "pipe", "inherit"],
    });
    started.stdout.setEncoding("utf8").on("data", (text: string) => lines.push(text));
    child = started;
    while (!(await readFile(addressFile, "utf8").catch(() => "")).includes("rpc")) {
      assert.equal(started.exitCode, null, `builderd ended: ${lines.join("")}`);
      await delay(20);
    }
  };
  const kill = async (): Promise<void> => {
    const victim = child;
    if (victim === undefined || victim.exitCode !== null || victim.signalCode !== null) return;
    victim.kill("SIGKILL");
    await once(victim, "exit");
  };
  atEnd(context, kill);

  const gateway = open("gatewayd");
  /** Asks builderd as it is now; the channel ends with the body. */
  const ask = async <T>(
    body: (client: ReturnType<typeof clientOf>, options: ReturnType<typeof callOptions>) => Promise<T>,
  ): Promise<T> => {
    await using channel = openRpcChannel({ peer: "builderd", address: { file: addressFile }, identity: gateway });
    const principal = { tenantId, subject: "key", roles: [], requestId: newId("req") };
    const principalToken = mintPrincipal({ identity: gateway.current, principal, nowMs: Date.now() });
    return await body(clientOf(channel), callOptions({ principalToken }));
  };
  const clientOf = (channel: ReturnType<typeof openRpcChannel>) => channel.client(BuilderService);
  /** Follows a build until it is in one of the states, or has ended. */
  const follow = (buildId: string, until: readonly BuildState[]): Promise<Build> =>
    ask(async (client, options) => {
      for await (const build of client.watchBuild({ tenantId, buildId }, options)) {
        if (until.includes(build.state)) return build;
      }
      throw new Error(`${buildId} ended in another state`);
    });
  return { assets, directory, dataDir, lines, start, kill, ask, follow };
}

/** A registry of one image whose layer can be held back. */
async function startRegistry(context: TestContext, content: Buffer) {
  const layout = join(await temporary(context), "layout");
  const { manifestDigest } = await assembleImage({
    directory: layout,
    files: [{ path: "app", content }],
    config: { Cmd: ["/app"] },
  });
  const blob = (digest: string) => readFile(join(layout, "blobs", "sha256", digest.slice(7)));
  let held: Promise<void> = Promise.resolve();
  let asked: (() => void) | undefined;
  const server = createServer((request, response) => {
    void (async () => {
      const digest = /sha256:[0-9a-f]{64}/.exec(request.url ?? "")?.[0];
      if (request.url === "/v2/") return response.end();
      if (digest === undefined || digest === manifestDigest) {
        return response
          .setHeader("content-type", "application/vnd.oci.image.manifest.v1+json")
          .end(await blob(manifestDigest));
      }
      const bytes = await blob(digest);
      if (bytes.length > content.length) {
        asked?.();
        await held;
      }
      return response.end(bytes);
    })();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(context, async () => {
    server.closeAllConnections();
    server.close();
  });
  return {
    reference: `127.0.0.1:${(server.address() as AddressInfo).port}/app:v1`,
    /** Holds the layer back until the function is called; `asked` resolves when somebody waits for it. */
    hold: () => {
      const gate = Promise.withResolvers<void>();
      const arrival = Promise.withResolvers<void>();
      held = gate.promise;
      asked = arrival.resolve;
      return { release: gate.resolve, asked: arrival.promise };
    },
  };
}

/** Tools of the same name that wait before they become the real one, as long as a file is there. */
async function heldTool(
  directory: string,
  name: string,
): Promise<{ readonly path: string; readonly release: () => Promise<void> }> {
  const path = join(directory, `held-${name}`);
  const hold = join(path, "hold");
  await mkdir(path);
  await writeFile(hold, "");
  const script = `#!/bin/sh\nwhile [ -e ${hold} ]; do sleep 0.05; done\nexec /usr/bin/${name} "$@"\n`;
  await writeFile(join(path, name), script, { mode: 0o755 });
  return { path, release: () => rm(hold) };
}

const allStates = ["PENDING", "PULLING", "EXTRACTING", "WRITING", "REGISTERING", "COMPLETED"];

for (const state of ["PULLING", "EXTRACTING", "WRITING", "REGISTERING"] as const) {
  test(`a build killed while ${state} is complete after the next start, with one asset`, {
    skip: needsRootfs,
  }, async (context) => {
    const world = await startWorld(context);
    const registry = await startRegistry(context, Buffer.alloc(1 << 20, state));
    const layer = state === "PULLING" ? registry.hold() : undefined;
    const tool = state === "EXTRACTING" ? "tar" : state === "WRITING" ? "mkfs.erofs" : undefined;
    const held = tool === undefined ? undefined : await heldTool(world.directory, tool);
    const upload = Promise.withResolvers<void>();
    if (state === "REGISTERING") world.assets.beforeUpload = () => upload.promise;
    await world.start(held?.path);

    const request = { tenantId, idempotencyKey: "k", ...fromRegistry(registry.reference) };
    const { buildId } = await world.ask((client, options) => client.buildImage(request, options));
    await world.follow(buildId, [BuildState[state]]);
    await world.kill();
    layer?.release();
    await held?.release();
    upload.resolve();

    await world.start();
    const result = await world.follow(buildId, [BuildState.COMPLETED, BuildState.FAILED]);
    assert.deepEqual(statesOf(result), [...allStates.slice(0, allStates.indexOf(state) + 1), ...allStates]);
    assert.equal(world.assets.stored.length, 1);
    assert.equal(result.rootfsAssetId, world.assets.stored[0]?.assetId);
    assert.deepEqual(await readdir(join(world.dataDir, "scratch")), []);
    const again = await world.ask((client, options) => client.buildImage(request, options));
    assert.equal(again.buildId, buildId, "the key still names it");
  });
}

test("a build with a login cannot go on after a restart, and says why", { skip: needsRootfs }, async (context) => {
  const world = await startWorld(context);
  const registry = await startRegistry(context, Buffer.alloc(1 << 20));
  const { asked } = registry.hold();
  await world.start();
  const credentials = { username: "user", password: "hunter2-in-memory" };
  const { buildId } = await world.ask((client, options) =>
    client.buildImage({ tenantId, idempotencyKey: "k", credentials, ...fromRegistry(registry.reference) }, options),
  );
  await asked;
  await world.kill();
  await world.start();
  const result = await world.follow(buildId, [BuildState.FAILED]);
  assert.equal(result.failure?.reason, "CREDENTIALS_LOST");
  await world.kill();
  for (const name of await readdir(world.dataDir, { recursive: true })) {
    const text = await readFile(join(world.dataDir, name), "latin1").catch(() => "");
    assert.ok(!text.includes(credentials.password), `${name} holds the password`);
  }
  assert.ok(!world.lines.join("").includes(credentials.password));
});

test("a build that three processes died with is not tried a fourth time", { skip: needsRootfs }, async (context) => {
  const world = await startWorld(context);
  const registry = await startRegistry(context, Buffer.alloc(1 << 20));
  let waiting = registry.hold();
  await world.start();
  const { buildId } = await world.ask((client, options) =>
    client.buildImage({ tenantId, idempotencyKey: "k", ...fromRegistry(registry.reference) }, options),
  );
  for (let death = 0; death < 3; death++) {
    await waiting.asked;
    await world.kill();
    waiting = registry.hold();
    await world.start();
  }
  const result = await world.follow(buildId, [BuildState.FAILED]);
  assert.equal(result.failure?.reason, "BUILD_INTERRUPTED");
});

test("a call without a principal is refused", { skip: needsRootfs }, async (context) => {
  const world = await startWorld(context);
  await world.start();
  await assert.rejects(
    world.ask((client) => client.listBuilds({ tenantId })),
    (error) => isServiceError(error, "PRINCIPAL_REQUIRED"),
  );
});
