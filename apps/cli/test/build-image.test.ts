import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { DeploymentState } from "@unkey/api/gateway";
import { systemClock } from "@unkey/base";
import { assembleImage, defaultImageLimits, exportLayoutArchive, hostPlatform, importLayoutArchive } from "@unkey/oci";
import { Interrupted } from "../src/failure.ts";
import { type RunOptions, temporaryFolder, unkey } from "./run.ts";
import { refusal, scriptedGateway } from "./scripted-gateway.ts";

const succeeded = { deploymentId: "dep_1", app: "web", state: DeploymentState.SUCCEEDED, url: "https://web.localhost" };
const fakeEngine = join(import.meta.dirname, "fake-engine.mjs");
const nodePath = process.execPath;

interface Call {
  readonly name: string;
  readonly argv: string[];
  readonly env: Record<string, string>;
  readonly context?: string;
  readonly dockerfile?: string;
  readonly secrets?: [string, string][];
  readonly given?: string[];
}

/** A home with a directory `app` to build, a gateway that takes deployments, and the engines of `installed`. */
async function setup(installed: readonly string[]) {
  const stack = new AsyncDisposableStack();
  const folder = stack.use(await temporaryFolder());
  const at = (...names: string[]) => join(folder.path, ...names);
  mkdirSync(at("app"));
  writeFileSync(at("app", "Dockerfile"), "FROM scratch\n");
  for (const directory of ["bin", "tmp", "engine"]) mkdirSync(at(directory));
  for (const name of installed) {
    writeFileSync(at("bin", name), `#!/bin/sh\nexec ${nodePath} ${fakeEngine} ${name} "$@"\n`, { mode: 0o755 });
  }
  await assembleImage({ directory: at("layout"), files: [{ path: "x", content: "y" }], config: { Cmd: ["/x"] } });
  const parts: Uint8Array[] = [];
  for await (const chunk of exportLayoutArchive(at("layout"))) parts.push(chunk);
  writeFileSync(at("archive.tar"), Buffer.concat(parts));
  const seen = { uploads: [] as { name: string; bytes: Buffer }[], apps: [] as string[], deployments: "" };
  const gateway = stack.use(
    await scriptedGateway(folder.path, {
      getPlatform: () => ({ hosts: [{ architecture: hostPlatform().architecture }] }),
      uploadImage: async (requests) => {
        let name = "";
        const chunks: Uint8Array[] = [];
        for await (const request of requests) {
          name ||= request.name;
          chunks.push(request.chunk);
        }
        const bytes = Buffer.concat(chunks);
        seen.uploads.push({ name, bytes });
        return { uploadId: "upload_1", digest: "sha256:0", sizeBytes: BigInt(bytes.length) };
      },
      createDeployment: (request) => {
        seen.apps.push(request.app);
        seen.deployments += JSON.stringify(request, (_, value: unknown) =>
          typeof value === "bigint" ? String(value) : value,
        );
        return succeeded;
      },
      async *watchDeployment() {
        yield succeeded;
      },
    }),
  );
  const env = {
    PATH: at("bin"),
    TMPDIR: at("tmp"),
    FAKE_ENGINE_DIR: at("engine"),
    FAKE_ENGINE_ARCHIVE: at("archive.tar"),
  };
  return {
    at,
    env,
    seen,
    gateway,
    archive: Buffer.concat(parts),
    run: (options: Partial<RunOptions>, ...argv: string[]) =>
      unkey({ home: folder.path, ...options, env: { ...env, ...options.env } }, ...argv),
    calls: (): Call[] =>
      existsSync(at("engine", "log"))
        ? readFileSync(at("engine", "log"), "utf8")
            .trim()
            .split("\n")
            .map((line) => JSON.parse(line) as Call)
        : [],
    /** Images that an engine still has. */
    images: () => readdirSync(at("engine")).filter((name) => name.startsWith("image-")),
    leftovers: () => readdirSync(at("tmp")),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

const alive = (pid: number): boolean => {
  try {
    // A zombie is nobody's work any more.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
};

for (const [engine, behaviour, options] of [
  ["buildctl", "", { argsHidden: false, secrets: true }],
  ["docker", "", { argsHidden: true, secrets: true }],
  ["docker", "legacy", { argsHidden: true, secrets: false }],
  ["podman", "", { argsHidden: true, secrets: true }],
] as const) {
  test(`${engine}${behaviour && ` (${behaviour})`} builds a directory; what is secret stays out of sight`, async () => {
    await using place = await setup([engine]);
    writeFileSync(place.at("token"), "the-token");
    writeFileSync(place.at("app", "Dockerfile.dev"), "FROM scratch AS dev\n");
    writeFileSync(place.at("app", "Dockerfile.dev.dockerignore"), "x\n");
    const secret = options.secrets ? ["--secret", "id=tok,src=token"] : [];
    const run = await place.run(
      { env: { [`FAKE_ENGINE_${engine.toUpperCase()}`]: behaviour, ARG_B: "hidden-b", UNKEY_API_KEY: "" } },
      "deploy",
      "app",
      "--file=app/Dockerfile.dev",
      "--target=dev",
      "--build-arg=ARG_A=hidden-a",
      "--build-arg=ARG_B",
      ...secret,
    );
    assert.equal(run.err, "");
    assert.match(
      run.out,
      new RegExp(`^… image .*${engine}\\n  \\| #1 \\[internal\\] load build definition\\n  \\| #2 DONE 0\\.1s\\n`),
    );
    assert.match(run.out, new RegExp(`✓ image .*built by ${engine}\\n… upload .*\\n✓ upload .*\\n`));
    assert.deepEqual(place.seen.uploads, [{ name: "app.tar", bytes: place.archive }]);
    assert.deepEqual(place.seen.apps, ["app"]);
    const [built] = place.calls();
    assert.equal(built?.context, place.at("app"));
    assert.equal(built.dockerfile, place.at("app", "Dockerfile.dev"));
    assert.deepEqual(built.given, ["ARG_A=hidden-a", "ARG_B=hidden-b"]);
    assert.deepEqual(built.secrets, options.secrets ? [["tok", "the-token"]] : []);
    assert.equal(/hidden-[ab]/.test(built.argv.join(" ")), !options.argsHidden);
    assert.ok(!built.argv.join(" ").includes("the-token"));
    assert.ok(built.argv.join(" ").includes(`linux/${hostPlatform().architecture}`));
    if (engine === "podman")
      assert.ok(built.argv.join(" ").includes(`--ignorefile ${place.at("app", "Dockerfile.dev.dockerignore")}`));
    assert.deepEqual(
      Object.keys(built.env).filter((name) => name.startsWith("UNKEY_")),
      [],
    );
    assert.ok(!/hidden-[ab]|the-token/.test(run.out + place.seen.deployments));
    assert.deepEqual(place.images(), engine === "podman" ? ["image-0123abcd"] : []);
    assert.deepEqual(place.leftovers(), []);
  });
}

test("a build argument of a name that the engine reads for itself does not reach its environment", async () => {
  await using place = await setup(["podman"]);
  const run = await place.run({}, "deploy", "app", "--build-arg", "HTTP_PROXY=http://p:1", "--build-arg", "ARG_A=1");
  assert.equal(run.exitCode, 0, run.err);
  const [built] = place.calls();
  assert.ok(built !== undefined);
  assert.ok(built.argv.includes("HTTP_PROXY=http://p:1"));
  assert.ok(built.argv.includes("ARG_A"));
  assert.deepEqual(built.env, { ARG_A: "1" });
});

test("the first engine that can build is taken; one that cannot is passed over", async () => {
  await using place = await setup(["podman", "docker", "buildctl"]);
  const used = async (env: Record<string, string>, ...argv: string[]) => {
    rmSync(place.at("engine", "log"), { force: true });
    const run = await place.run({ env }, "deploy", "app", ...argv);
    assert.equal(run.exitCode, 0, run.err);
    return place.calls()[0]?.name;
  };
  assert.equal(await used({}), "buildctl");
  assert.equal(await used({ FAKE_ENGINE_BUILDCTL: "down" }), "docker");
  assert.equal(await used({ FAKE_ENGINE_BUILDCTL: "down", FAKE_ENGINE_DOCKER: "down" }), "podman");
  writeFileSync(place.at("token"), "x");
  const legacy = { FAKE_ENGINE_BUILDCTL: "down", FAKE_ENGINE_DOCKER: "legacy" };
  assert.equal(await used(legacy), "docker");
  assert.equal(await used(legacy, "--secret", "id=a,src=token"), "podman");
});

test("without an engine that can build it says what each lacks and what to install", async () => {
  await using place = await setup(["docker"]);
  const run = await place.run({ env: { FAKE_ENGINE_DOCKER: "down" } }, "deploy", "app");
  assert.equal(run.exitCode, 2);
  assert.equal(
    run.err,
    [
      "error: a Dockerfile needs an engine to build it, and none can be used here",
      "  | buildctl: not installed",
      "  | buildah: not installed",
      "  | docker: a running daemon that this user may speak to is needed; it says: Cannot connect to the daemon. Is it running?",
      "  | podman: not installed",
      "next:  Install buildah, which needs no daemon (`apt-get install buildah crun`), or start the one that is there; or deploy an image that was built elsewhere.",
      "",
    ].join("\n"),
  );
  assert.deepEqual(place.seen.uploads, []);
});

test("a build that fails shows the engine's last words and sends nothing", async () => {
  await using place = await setup(["docker"]);
  const run = await place.run({ env: { FAKE_ENGINE_DOCKER: "fails" } }, "deploy", "app", "--json");
  assert.equal(run.exitCode, 1);
  assert.equal(run.out, "");
  assert.match(run.err, /docker buildx failed with exit code 1/);
  assert.match(run.err, /exit code: 7/);
  assert.deepEqual([place.seen.uploads, place.leftovers()], [[], []]);
});

test("Ctrl-C ends the engine and what it started, and leaves no file", async () => {
  await using place = await setup(["docker"]);
  const interrupt = new AbortController();
  const run = await place.run(
    {
      env: { FAKE_ENGINE_DOCKER: "hangs" },
      signal: interrupt.signal,
      onOut: (text) => text.includes("RUN sleep") && interrupt.abort(new Interrupted()),
    },
    "deploy",
    "app",
  );
  assert.equal(run.exitCode, 130);
  const pids = readFileSync(place.at("engine", "pids"), "utf8").split(" ").map(Number);
  assert.equal(pids.length, 2);
  while (pids.some(alive)) await systemClock.sleep(10);
  assert.deepEqual([place.seen.uploads, place.leftovers()], [[], []]);
  assert.ok(place.calls().some(({ argv }) => argv.slice(0, 2).join(" ") === "image rm"));
});

for (const [how, signals] of [
  ["SIGTERM", ["SIGTERM"]],
  ["a second Ctrl-C", ["SIGINT", "SIGINT"]],
] as const) {
  test(`${how} ends an engine too, one that does not listen included`, async () => {
    await using place = await setup(["podman"]);
    const main = join(import.meta.dirname, "../src/main.ts");
    const child = spawn(nodePath, [main, "deploy", "app"], {
      cwd: place.at(),
      env: {
        ...place.env,
        UNKEY_HOME: place.at(),
        FAKE_ENGINE_PODMAN: how === "SIGTERM" ? "hangs" : "hangs hard",
      },
      stdio: ["ignore", "pipe", "inherit"],
    });
    const exited = once(child, "exit");
    // Listened to until the end: a reader that goes first is a reason of its own to end.
    await new Promise<void>((resolve) =>
      child.stdout.on("data", (chunk: Buffer) => chunk.includes("RUN sleep") && resolve()),
    );
    assert.equal(readdirSync(place.at("tmp")).length, 1);
    for (const signal of signals) {
      child.kill(signal);
      await systemClock.sleep(50); // so that the second is not the first
    }
    assert.deepEqual(await exited, [130, null]);
    const pids = readFileSync(place.at("engine", "pids"), "utf8").split(" ").map(Number);
    while (pids.some(alive)) await systemClock.sleep(10);
    assert.deepEqual(readdirSync(place.at("tmp")), []);
  });
}

test("flags that say how to build are refused where nothing is built, and when they cannot be", async () => {
  await using place = await setup([]);
  mkdirSync(place.at("app2"));
  const cases: [string[], RegExp][] = [
    [["deploy", "r.example/app", "--target", "x"], /--target is for a directory that is built/],
    [["deploy", "archive.tar", "--app", "web", "--build-arg", "A=1"], /--build-arg is for a directory/],
    [["deploy", "app", "--build-arg", "NOT_SET"], /NOT_SET is not set here/],
    [["deploy", "app", "--build-arg", "A B=1"], /"A B" is no name/],
    [["deploy", "app", "--secret", "hunter2"], /--secret is not of the form id=name,src=path/],
    [["deploy", "app", "--secret", "id=a,src=nowhere"], /nowhere is not a file/],
    [["deploy", "app", "--secret", "id=a,src=archive.tar,mode=1"], /not of the form/],
    [["deploy", "app", "--file", "nowhere"], /nowhere is not a file/],
    [["deploy", "app2"], /has no Dockerfile to build and is no OCI layout/],
  ];
  for (const [argv, words] of cases) {
    const run = await place.run({}, ...argv);
    assert.match(run.err, words, argv.join(" "));
    assert.ok(!run.err.includes("hunter2"));
  }
});

const buildahPath = "/usr/bin/buildah";
const needsBuildah =
  process.getuid?.() !== 0
    ? "root is needed to build without subordinate ids"
    : !existsSync(buildahPath)
      ? "buildah is not installed"
      : !existsSync("/bin/busybox") && "busybox-static is not installed";

test("buildah builds a Dockerfile for real: arguments, secrets, targets and .dockerignore", {
  skip: needsBuildah,
}, async () => {
  await using place = await setup([]);
  symlinkSync(buildahPath, place.at("bin", "buildah"));
  copyFileSync("/bin/busybox", place.at("app", "busybox"));
  chmodSync(place.at("app", "busybox"), 0o755);
  writeFileSync(place.at("app", "kept"), "kept");
  writeFileSync(place.at("app", "ignored"), "ignored");
  writeFileSync(place.at("app", ".dockerignore"), "ignored\n");
  writeFileSync(
    place.at("app", "Dockerfile"),
    [
      "FROM scratch AS first",
      "ARG GREETING",
      "COPY . /app",
      'RUN --mount=type=secret,id=tok ["/app/busybox","sh","-c","echo $GREETING $(/app/busybox wc -c < /run/secrets/tok) > /said"]',
      'CMD ["/app/busybox"]',
      "FROM first AS second",
      'RUN ["/app/busybox","false"]',
    ].join("\n"),
  );
  writeFileSync(place.at("token"), "the-token");
  writeFileSync(
    place.at("storage.conf"),
    `[storage]\ndriver = "vfs"\ngraphroot = "${place.at("graph")}"\nrunroot = "${place.at("run")}"\n`,
  );
  const env = {
    PATH: `${place.at("bin")}:/usr/sbin:/usr/bin:/sbin:/bin`,
    HOME: place.at(),
    CONTAINERS_STORAGE_CONF: place.at("storage.conf"),
    BUILDAH_ISOLATION: "chroot",
  };
  const flags = ["--target", "first", "--build-arg", "GREETING=hello", "--secret", "id=tok,src=token"];
  const run = await place.run(
    { env, cwd: place.at("app") },
    "deploy",
    ".",
    ...flags.map((flag) => flag.replace("=token", "=../token")),
  );
  assert.equal(run.err, "");
  assert.match(run.out, /\| STEP 4\/5: RUN --mount=type=secret/);
  assert.deepEqual(place.seen.apps, ["app"]);
  assert.deepEqual(place.leftovers(), []);

  mkdirSync(place.at("imported"));
  const [upload] = place.seen.uploads;
  async function* whole() {
    yield upload?.bytes ?? Buffer.alloc(0);
  }
  await importLayoutArchive(whole(), place.at("imported"), defaultImageLimits);
  const names = await filesOf(place.at("imported"));
  assert.equal(names.get("said"), "hello 9\n");
  assert.ok(names.has("app/kept") && !names.has("app/ignored"), [...names.keys()].join(" "));
  assert.ok(![...names.values()].some((content) => content === "the-token"));

  const containers = () =>
    execFileSync(buildahPath, ["containers", "--quiet"], { env: { ...process.env, ...env } }).toString();
  const failed = await place.run({ env }, "deploy", "app", "--secret", "id=tok,src=token");
  assert.equal(failed.exitCode, 1);
  assert.match(failed.err, /buildah build failed with exit code 1/);

  writeFileSync(
    place.at("app", "Dockerfile"),
    'FROM scratch\nCOPY busybox /\nRUN ["/busybox", "sh", "-c", "echo it runs; sleep 1000"]\n',
  );
  const interrupt = new AbortController();
  const onOut = (text: string) => text.includes("| it runs") && interrupt.abort(new Interrupted());
  const ended = await place.run({ env, signal: interrupt.signal, onOut }, "deploy", "app");
  assert.equal(ended.exitCode, 130);
  assert.deepEqual([containers(), place.leftovers()], ["", []]);

  writeFileSync(place.at("app", "Dockerfile"), "FROM scratch\n");
  const least = await place.run({ env }, "deploy", "app");
  assert.equal(least.exitCode, 0, least.err);
  assert.equal(containers(), "");
  assert.equal(place.seen.uploads.length, 2);
});

/** Small files of a layout's layers, by name. */
async function filesOf(layout: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const blob of readdirSync(join(layout, "blobs/sha256"))) {
    const bytes = readFileSync(join(layout, "blobs/sha256", blob));
    const tar = bytes.readUInt16BE(0) === 0x1f8b ? gunzipSync(bytes) : bytes;
    if (tar.toString("latin1", 257, 262) !== "ustar") continue;
    for (let at = 0; at + 512 <= tar.length && tar[at] !== 0; ) {
      const size = Number.parseInt(tar.toString("latin1", at + 124, at + 135), 8);
      const name = tar.toString("latin1", at, at + 100).replace(/\0.*$/s, "");
      if (size < 10_000) found.set(name, tar.toString("utf8", at + 512, at + 512 + size));
      at += 512 + Math.ceil(size / 512) * 512;
    }
  }
  return found;
}

test("a platform that the key may not ask about is built for like this machine", async () => {
  await using place = await setup(["docker"]);
  await using _other = await scriptedGateway(place.at(), {
    getPlatform: () => {
      throw refusal("SCOPE_MISSING", "the key lacks platform:read");
    },
    uploadImage: async (requests) => {
      for await (const _ of requests);
      return { uploadId: "upload_1" };
    },
    createDeployment: () => succeeded,
  });
  const run = await place.run({}, "deploy", "app", "--detach");
  assert.equal(run.exitCode, 0, run.err);
  assert.ok(place.calls()[0]?.argv.includes(`linux/${hostPlatform().architecture}`));
});
