import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { type ErrorReason, isServiceError, mib } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { type Digest, defaultImageLimits, digestOf } from "@unkey/oci";
import { Sandbox } from "../src/sandbox/sandbox.ts";
import { SandboxedWorkers } from "../src/worker/image-workers.ts";
import { fillCompileCache, programFolders, workerFlags, workerProgram } from "../src/worker/program.ts";
import { atEnd, temporary } from "./harness.ts";

/*
 * Workers that somebody has taken over: whatever they do, the build fails with a reason that says what happened, and nothing of
 * them is left.
 */

const projectRoot = join(import.meta.dirname, "../../..");
const instanceId = randomBytes(3).toString("hex");
const firstUid = 0x6800_0000 + randomBytes(2).readUInt16BE();
const isRoot = process.getuid?.() === 0;
const needsRoot = isRoot ? false : "root is needed to confine a process";

interface World {
  readonly sandbox: Sandbox;
  readonly lines: readonly string[];
  readonly directory: string;
  unpack(
    mode: readonly string[],
    options?: { readonly bytes?: number; readonly signal?: AbortSignal; readonly chunks?: AsyncIterable<Uint8Array> },
  ): Promise<unknown>;
}

async function startWorld(
  context: TestContext,
  limits: { memoryBytes?: number; diskBytes?: number } = {},
): Promise<World> {
  const directory = await temporary(context);
  const sandbox = await Sandbox.open({
    instanceId: `${instanceId}-${randomBytes(2).toString("hex")}`,
    directory: join(directory, "sandbox"),
    programFolders: ["packages", "node_modules", "services/builderd"].map((name) => join(projectRoot, name)),
    firstUid,
    maxRunning: 4,
  });
  atEnd(context, async () => sandbox[Symbol.asyncDispose]());
  const lines: string[] = [];
  const log = createLogger({ level: "trace", write: (line) => lines.push(line) });
  await mkdir(join(directory, "scratch"));
  let jobs = 0;
  return {
    sandbox,
    lines,
    directory,
    unpack: async (mode, { bytes = 3 * mib, signal = new AbortController().signal, chunks } = {}) => {
      const workers = new SandboxedWorkers({
        sandbox,
        program: [join(import.meta.dirname, "workers/hostile-worker.ts"), ...mode],
        compileCache: join(directory, "none"),
        memoryBytes: limits.memoryBytes ?? 256 * mib,
        diskBytes: limits.diskBytes ?? 256 * mib,
        log,
      });
      const digest: Digest = digestOf(Buffer.from("layer"));
      return workers.unpackLayer({
        name: `job-${++jobs}`,
        layer: {
          descriptor: { digest, sizeBytes: bytes, mediaType: "", annotations: {}, platform: undefined },
          diffId: digest,
        },
        chunks: chunks ?? zeros(bytes),
        directory: join(directory, "scratch", `job-${jobs}`),
        limits: defaultImageLimits,
        signal,
        onBytes: () => undefined,
      });
    },
  };
}

async function* zeros(bytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes; at += 1 << 16) yield Buffer.alloc(1 << 16);
}

/** Living processes of the user ids that workers have. */
async function hostileProcesses(): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
    const uid = Number(/^Uid:\s+(\d+)/m.exec(status)?.[1]);
    if (/^State:\s+Z/m.test(status)) continue; // dead, and waits for the host's init
    if (uid >= firstUid && uid < firstUid + 4) found.push(`${pid} ${/^Name:\s+(.*)/m.exec(status)?.[1] ?? ""}`);
  }
  return found;
}

async function contained(world: World): Promise<void> {
  assert.deepEqual(await hostileProcesses(), []);
  for (const hierarchy of ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"]) {
    for (const name of await readdir(hierarchy).catch(() => [])) {
      if (name.startsWith(`unkey-builder-${instanceId}`) && existsSync(join(hierarchy, name, "cgroup.procs"))) {
        const groups = await readdir(join(hierarchy, name), { withFileTypes: true });
        assert.deepEqual(
          groups.filter((entry) => entry.isDirectory()).map((entry) => entry.name),
          [],
        );
      }
    }
  }
  assert.deepEqual(await readdir(join(world.directory, "sandbox")), ["root"], "no mount table is left");
}

const refused = (reason: ErrorReason, words: RegExp) => (error: unknown) => {
  assert.ok(isServiceError(error, reason), `${String(error)} is not ${reason}`);
  assert.match(error.message, words);
  return true;
};

const answers: readonly (readonly [mode: string, reason: ErrorReason, words: RegExp])[] = [
  ["garbage", "BUILD_WORKER_MISBEHAVED", /has sent what no worker sends/],
  ["huge-frame", "BUILD_WORKER_MISBEHAVED", /has sent what no worker sends/],
  ["no-json", "BUILD_WORKER_MISBEHAVED", /has sent what no worker sends/],
  ["unknown-kind", "BUILD_WORKER_MISBEHAVED", /has sent what no worker sends/],
  ["foreign-reason", "BUILD_WORKER_MISBEHAVED", /has sent what no worker sends/],
  ["control-characters", "BUILD_WORKER_MISBEHAVED", /has sent what no worker sends/],
  ["flood", "BUILD_WORKER_MISBEHAVED", /has sent what no worker sends/],
  ["early-done", "BUILD_WORKER_MISBEHAVED", /before it had its bytes/],
  ["other-job", "BUILD_WORKER_MISBEHAVED", /another job/],
  ["exits", "BUILD_WORKER_FAILED", /ended early \(3\)/],
];

for (const [mode, reason, words] of answers) {
  test(`a worker: ${mode}`, async (context) => {
    const world = await startWorld(context);
    await assert.rejects(world.unpack([mode]), refused(reason, words));
    await contained(world);
  });
}

test("a worker that says no and goes on is ended", async (context) => {
  const world = await startWorld(context);
  await assert.rejects(world.unpack(["stops-reading"], { bytes: 64 * mib }), refused("IMAGE_LAYER_INVALID", /no/));
  await contained(world);
});

test("a worker that hangs is ended by the build's time", async (context) => {
  const world = await startWorld(context);
  const late = new AbortController();
  const ended = world.unpack(["hang"], { bytes: 64 * mib, signal: late.signal });
  setTimeout(() => late.abort(new Error("time is up")), 1000);
  await assert.rejects(ended, /time is up/);
  await contained(world);
});

test("bytes that are not their digest's are the reason, whatever the worker makes of them", async (context) => {
  const world = await startWorld(context);
  async function* damaged(): AsyncGenerator<Uint8Array> {
    yield* zeros(64 * mib);
    throw new Error("not the digest's");
  }
  await assert.rejects(world.unpack(["stops-reading"], { chunks: damaged() }), /not the digest's/);
  await contained(world);
});

test("a worker that takes more memory than it may", { skip: needsRoot }, async (context) => {
  const world = await startWorld(context, { memoryBytes: 128 * mib });
  if (world.sandbox.layers["build-cgroup"]?.active !== true) return context.skip("this host has no cgroups");
  await assert.rejects(world.unpack(["eats-memory"]), refused("BUILD_MEMORY_EXCEEDED", /memory/));
  await contained(world);
});

for (const [mode, diskBytes] of [
  ["fills-disk", 32 * mib],
  ["hides-disk", 32 * mib],
  ["many-files", 256 * mib],
  ["large-file", 32 * mib],
] as const) {
  test(`a worker that takes the disk: ${mode}`, async (context) => {
    const world = await startWorld(context, { diskBytes });
    const ended = world.unpack([mode]);
    await assert.rejects(ended, (error) => {
      assert.ok(isServiceError(error), String(error));
      // A write over the limit for one file fails inside the worker before the watch sees it.
      assert.ok(["BUILD_DISK_EXCEEDED", "BUILD_WORKER_FAILED"].includes(error.reason), error.reason);
      return mode === "large-file" || error.reason === "BUILD_DISK_EXCEEDED";
    });
    await contained(world);
  });
}

test("a worker that forks gets only so far, and takes its children with it", { skip: needsRoot }, async (context) => {
  const world = await startWorld(context);
  if (world.sandbox.layers["build-cgroup"]?.active !== true) return context.skip("this host has no cgroups");
  await assert.rejects(world.unpack(["forks"]), (error) => {
    assert.ok(isServiceError(error, "IMAGE_LAYER_INVALID"), String(error));
    const { started } = JSON.parse(error.message) as { started: number };
    assert.ok(started > 0 && started < 64, `${started} processes`);
    return true;
  });
  await contained(world);
});

test("without namespaces and cgroups a worker's children end with it too", { skip: needsRoot }, async (context) => {
  const directory = await temporary(context);
  const sandbox = await Sandbox.open({
    instanceId: "\0", // no cgroup can be called so
    directory: join(directory, "sandbox"),
    programFolders: [],
    firstUid,
    maxRunning: 1,
    confinements: ["user"],
  });
  atEnd(context, async () => sandbox[Symbol.asyncDispose]());
  assert.deepEqual(
    ["build-user", "build-namespaces", "build-cgroup"].map((name) => sandbox.layers[name]?.active),
    [true, false, false],
  );
  const own = join(directory, "job");
  await mkdir(own);
  const script = "sleep 1000 >out/content 2>&1 </dev/null & setsid sleep 1000 >/dev/null 2>&1 </dev/null & read line";
  const process = await sandbox.start({
    name: "job",
    program: ["/bin/sh", "-c", script],
    env: {},
    directory: own,
    limits: { memoryBytes: mib, cpuCount: 1, processes: 16, fileBytes: mib, openFiles: 64 },
  });
  while ((await hostileProcesses()).length < 3) await new Promise((resolve) => setTimeout(resolve, 20));
  process.input.end("\n");
  assert.equal((await process.ended).code, 0);
  assert.deepEqual(await hostileProcesses(), []);
});

test("a worker sees neither the host nor a network", { skip: needsRoot }, async (context) => {
  const world = await startWorld(context);
  if (world.sandbox.layers["build-namespaces"]?.active !== true) return context.skip("this host gives no namespaces");
  const server = createServer((socket) => socket.end("hello"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(context, async () => void server.close());
  const { port } = server.address() as { port: number };
  await assert.rejects(world.unpack(["explores", String(port), world.directory]), (error) => {
    assert.ok(isServiceError(error, "IMAGE_LAYER_INVALID"), String(error));
    const seen = JSON.parse(error.message) as Record<string, unknown>;
    assert.ok(Number(seen["uid"]) >= firstUid && Number(seen["uid"]) < firstUid + 4);
    const { uid: _, root, ...rest } = seen;
    // Programs lie where they lie on the host, whatever that folder is called.
    const programs = [...programFolders, process.execPath].map((path) => path.split("/")[1] ?? "");
    const known = new Set(["bin", "dev", "job", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "usr", ...programs]);
    assert.deepEqual(
      String(root)
        .split(" ")
        .filter((name) => !known.has(name)),
      [],
    );
    assert.deepEqual(rest, {
      groups: rest["groups"],
      capabilities: "0000000000000000",
      bounding: "0000000000000000",
      noNewPrivileges: "1",
      processes: 1,
      interfaces: 1,
      network: "ENETUNREACH",
      internet: "ENETUNREACH",
      environment: "MALLOC_ARENA_MAX MALLOC_TRIM_THRESHOLD_ NODE_COMPILE_CACHE OLDPWD PATH PWD",
      writesIn: "EROFS",
      writesUsr: "EROFS",
      writesHere: "EACCES",
      data: "ENOENT",
      passwd: "ENOENT",
      runs: "ENOENT",
    });
    return true;
  });
  await contained(world);
});

test("a worker loads modules that were compiled before it", { skip: needsRoot }, async (context) => {
  const directory = await temporary(context);
  const compileCache = join(directory, "cache");
  await mkdir(compileCache, { mode: 0o755 });
  const sandbox = await Sandbox.open({
    instanceId: `${instanceId}-${randomBytes(2).toString("hex")}`,
    directory: join(directory, "sandbox"),
    programFolders: [...programFolders, compileCache],
    firstUid,
    maxRunning: 1,
  });
  atEnd(context, async () => sandbox[Symbol.asyncDispose]());
  const filling = fillCompileCache(compileCache, sandbox.uids);
  atEnd(context, async () => filling[Symbol.asyncDispose]());
  await filling.filled;
  for (const [kind, flags] of Object.entries(workerFlags)) {
    await mkdir(join(directory, kind), { mode: 0o755 });
    const worker = await sandbox.start({
      name: kind,
      program: [process.execPath, ...flags, ...workerProgram],
      // Node then says on standard error what it wants to add to the cache.
      env: { NODE_COMPILE_CACHE: compileCache, NODE_DEBUG_NATIVE: "COMPILE_CACHE" },
      directory: join(directory, kind),
      limits: { memoryBytes: 512 * mib, cpuCount: 1, processes: 64, fileBytes: 0, openFiles: 256 },
    });
    worker.control.end();
    await worker.ended;
    assert.match(worker.words(), /compile cache/);
    assert.doesNotMatch(worker.words(), /Creating temporary file|permission denied/);
  }
});

test("the host's list of mounts does not grow with each process", { skip: needsRoot }, async (context) => {
  const { directory } = await startWorld(context); // it has tried one
  const noted = await readFile("/run/mount/utab", "utf8").catch(() => "");
  assert.ok(!noted.includes(directory), "nobody would take the entries out again");
});

test("what an earlier process left running is ended at the next start", { skip: needsRoot }, async (context) => {
  const world = await startWorld(context);
  const running = world.unpack(["hang"], { bytes: 64 * mib });
  while ((await hostileProcesses()).length === 0) await new Promise((resolve) => setTimeout(resolve, 20));
  const failed = assert.rejects(running, refused("BUILD_WORKER_FAILED", /ended early/));
  const directory = join(world.directory, "sandbox");
  const parents = (await readdir("/sys/fs/cgroup/pids").catch(() => readdir("/sys/fs/cgroup"))).filter((name) =>
    name.startsWith(`unkey-builder-${instanceId}`),
  );
  for (const parent of parents) {
    const next = await Sandbox.open({
      instanceId: parent.slice("unkey-builder-".length),
      directory,
      programFolders: [],
      firstUid,
      maxRunning: 4,
    });
    assert.deepEqual(await hostileProcesses(), []);
    await next[Symbol.asyncDispose]();
  }
  await failed;
});
