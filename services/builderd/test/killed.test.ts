import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readdir, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { type Build, BuilderService, BuildState } from "@unkey/api/builder";
import { makeSigningKey } from "@unkey/attest/testing";
import { isServiceError, newId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { Authority, ensureIdentity, IdentitySource } from "@unkey/pki";
import { callOptions, listenRpc, mintPrincipal, openRpcChannel } from "@unkey/rpc";
import { atEnd, fromRegistry, needsRoot, statesOf, temporary } from "./harness.ts";
import { startLayeredRegistry } from "./layered-registry.ts";
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
  const keyFile = join(directory, "provenance-key.pem");
  await writeFile(keyFile, makeSigningKey().privateKeyPem, { mode: 0o600 });
  /** With `heldAt`, workers stand still where it says: see workers/held-worker.ts. */
  const start = async (heldAt?: string): Promise<void> => {
    await rm(addressFile, { force: true });
    const program = heldAt === undefined ? ["../src/main.ts"] : ["workers/daemon-with-held-worker.ts", heldAt];
    const [file = "", ...args] = program;
    const started = spawn(process.execPath, [join(import.meta.dirname, file), ...args], {
      env: {
        PATH: process.env["PATH"],
        UNKEY_BUILDERD_PROVENANCE_KEY_FILE: keyFile,
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

/** Resolves when a worker stands still. */
async function stoodStill(dataDir: string): Promise<void> {
  for (;;) {
    const names = await readdir(join(dataDir, "scratch"), { recursive: true }).catch(() => []);
    if (names.some((name) => name.endsWith("/held"))) return;
    await delay(20);
  }
}

/** Processes on this host, builderd's own aside, that were started for this data directory: their environment or arguments name it. */
async function left(dataDir: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)) {
    const texts = await Promise.all(
      ["cmdline", "environ"].map((file) => readFile(`/proc/${pid}/${file}`, "latin1").catch(() => "")),
    );
    if (texts.some((text) => text.includes(dataDir))) found.push(texts.join(" ").replaceAll("\0", " ").slice(0, 200));
  }
  return found;
}

/** Control groups of this data directory's builderd that still exist, below its own. */
async function groups(dataDir: string): Promise<string[]> {
  const id = createHash("sha256")
    .update(await realpath(dataDir))
    .digest("hex")
    .slice(0, 6);
  const roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu"];
  const found = await Promise.all(
    roots.map((root) => readdir(join(root, `unkey-builder-${id}`), { withFileTypes: true }).catch(() => [])),
  );
  return found
    .flat()
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name);
}

async function nothingLeft(dataDir: string): Promise<void> {
  assert.deepEqual(await readdir(join(dataDir, "scratch")), []);
  assert.deepEqual(await readdir(join(dataDir, "sandbox")), ["root"]);
  assert.deepEqual(await groups(dataDir), []);
}

const allStates = ["PENDING", "PULLING", "EXTRACTING", "WRITING", "REGISTERING", "COMPLETED"];
const small = 10_000;
/** More than the pipe to a worker holds. */
const large = 4 << 20;

/** Where a build is when it is interrupted, and how it is brought there; the layers that are complete by then are not fetched again. */
interface Point {
  readonly at: string;
  readonly state: "PULLING" | "EXTRACTING" | "WRITING" | "REGISTERING";
  readonly layers: readonly number[];
  readonly heldWorker?: string;
  /** Number of a layer that the registry does not answer. */
  readonly heldLayer?: number;
  readonly complete: readonly number[];
}

const points: readonly Point[] = [
  { at: "before the first byte of a layer", state: "PULLING", layers: [large, small], heldLayer: 1, complete: [0] },
  { at: "in the middle of a layer", state: "PULLING", layers: [large], heldWorker: "unpack:read", complete: [] },
  { at: "when all is fetched", state: "EXTRACTING", layers: [small], heldWorker: "unpack:read", complete: [] },
  {
    at: "before a layer is in the cache",
    state: "EXTRACTING",
    layers: [small],
    heldWorker: "unpack:done",
    complete: [],
  },
  {
    at: "in the middle of the image",
    state: "WRITING",
    layers: [small, large],
    heldWorker: "assemble:progress",
    complete: [0, 1],
  },
  {
    at: "with the image done",
    state: "WRITING",
    layers: [small, large],
    heldWorker: "assemble:done",
    complete: [0, 1],
  },
  { at: "before the asset is there", state: "REGISTERING", layers: [large, small], complete: [0, 1] },
];

/** A world with one build, which stands still at the point; `release` lets what it waits for outside builderd go on. */
async function buildHeldAt(context: TestContext, { state, layers, heldWorker, heldLayer, complete }: Point) {
  const world = await startWorld(context);
  const registry = await startLayeredRegistry(context);
  const image = await registry.add(
    "app",
    layers.map((bytes, index) => Buffer.alloc(bytes, `${state} ${index}`)),
  );
  const layer = heldLayer === undefined ? undefined : registry.hold(image.digests[heldLayer] ?? "");
  const upload = Promise.withResolvers<void>();
  if (state === "REGISTERING") world.assets.beforeUpload = () => upload.promise;
  const release = (): void => {
    layer?.release();
    upload.resolve();
  };
  context.after(release);
  await world.start(heldWorker);

  const request = { tenantId, idempotencyKey: "k", ...fromRegistry(image.reference) };
  const { buildId } = await world.ask((client, options) => client.buildImage(request, options));
  await world.follow(buildId, [BuildState[state]]);
  if (heldWorker !== undefined) await stoodStill(world.dataDir);
  if (layer !== undefined) {
    await layer.asked;
    while ((await cachedLayers(world.dataDir)).length < complete.length) await delay(20);
  }
  return { world, registry, image, request, buildId, release };
}

async function cachedLayers(dataDir: string): Promise<string[]> {
  return (await readdir(join(dataDir, "layers"))).filter((name) => name.startsWith("layer-"));
}

for (const point of points) {
  const { at, state, complete } = point;
  test(`a build killed while ${state}, ${at}, is complete after the next start`, {
    skip: needsRoot,
  }, async (context) => {
    const { world, registry, image, request, buildId, release } = await buildHeldAt(context, point);
    await world.kill();
    for (let tries = 0; (await left(world.dataDir)).length > 0; tries++) {
      assert.ok(tries < 250, `alive after builderd: ${(await left(world.dataDir)).join("\n")}`);
      await delay(20);
    }
    release();

    await world.start();
    const result = await world.follow(buildId, [BuildState.COMPLETED, BuildState.FAILED]);
    assert.deepEqual(statesOf(result), [...allStates.slice(0, allStates.indexOf(state) + 1), ...allStates]);
    assert.equal(world.assets.rootfs.length, 1);
    assert.equal(result.rootfsAssetId, world.assets.rootfs[0]?.assetId);
    for (const index of complete) {
      assert.equal(registry.reads.get(image.digests[index] ?? ""), 1, `layer ${index} was complete`);
    }
    await nothingLeft(world.dataDir);
    const again = await world.ask((client, options) => client.buildImage(request, options));
    assert.equal(again.buildId, buildId, "the key still names it");
    const quota = await world.ask((client, options) => client.getBuildQuota({ tenantId }, options));
    assert.deepEqual([quota.dailyUsed, quota.concurrentUsed], [1, 0], "one build, whatever died at it");
    assert.ok(quota.dailyBytesUsed > 0n && quota.dailyMinutesUsed >= 1);
  });

  test(`a build cancelled while ${state}, ${at}, leaves nothing`, { skip: needsRoot }, async (context) => {
    const { world, buildId } = await buildHeldAt(context, point);
    const startedAtMs = performance.now();
    const cancelled = await world.ask((client, options) => client.cancelBuild({ tenantId, buildId }, options));
    context.diagnostic(`cancelled in ${(performance.now() - startedAtMs).toFixed()} ms`);
    assert.equal(cancelled.state, BuildState.CANCELLED);
    await nothingLeft(world.dataDir);
    assert.equal(world.assets.rootfs.length, 0);
  });
}

test("a build with a login cannot go on after a restart, and says why", { skip: needsRoot }, async (context) => {
  const world = await startWorld(context);
  const registry = await startLayeredRegistry(context);
  const { reference, digests } = await registry.add("app", [Buffer.alloc(1 << 20)]);
  const { asked } = registry.hold(digests[0] ?? "");
  await world.start();
  const credentials = { username: "user", password: "hunter2-in-memory" };
  const { buildId } = await world.ask((client, options) =>
    client.buildImage({ tenantId, idempotencyKey: "k", credentials, ...fromRegistry(reference) }, options),
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

test("a build that three processes died with is not tried a fourth time", { skip: needsRoot }, async (context) => {
  const world = await startWorld(context);
  const registry = await startLayeredRegistry(context);
  const { reference, digests } = await registry.add("app", [Buffer.alloc(1 << 20)]);
  let waiting = registry.hold(digests[0] ?? "");
  await world.start();
  const { buildId } = await world.ask((client, options) =>
    client.buildImage({ tenantId, idempotencyKey: "k", ...fromRegistry(reference) }, options),
  );
  for (let death = 0; death < 3; death++) {
    await waiting.asked;
    await world.kill();
    waiting = registry.hold(digests[0] ?? "");
    await world.start();
  }
  const result = await world.follow(buildId, [BuildState.FAILED]);
  assert.equal(result.failure?.reason, "BUILD_INTERRUPTED");
});

test("a call without a principal is refused", { skip: needsRoot }, async (context) => {
  const world = await startWorld(context);
  await world.start();
  await assert.rejects(
    world.ask((client) => client.listBuilds({ tenantId })),
    (error) => isServiceError(error, "PRINCIPAL_REQUIRED"),
  );
});
