import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Code, ConnectError, type HandlerContext } from "@connectrpc/connect";
import { DeploymentState, StepState } from "@unkey/api/gateway";
import { errorCatalogue } from "@unkey/base";
import { Interrupted } from "../src/failure.ts";
import { temporaryFolder, unkey } from "./run.ts";
import { refusal, scriptedGateway, scriptedKey } from "./scripted-gateway.ts";

const noClient = (message: string): never => {
  throw new ConnectError(message, Code.Internal);
};

const running = { deploymentId: "dep_1", app: "web", state: DeploymentState.RUNNING };
const succeeded = { ...running, state: DeploymentState.SUCCEEDED, url: "https://web.localhost:8443" };

test("deploy uploads a layout as a tar, asks once under one key and ends with the address", async () => {
  await using folder = await temporaryFolder();
  const layout = join(folder.path, "image");
  mkdirSync(join(layout, "blobs/sha256"), { recursive: true });
  writeFileSync(join(layout, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
  writeFileSync(join(layout, "index.json"), "{}");
  writeFileSync(join(layout, "blobs/sha256", "a".repeat(64)), Buffer.alloc(700_000, 7));
  writeFileSync(join(layout, "notes.txt"), "stays here");
  let archive = Buffer.alloc(0);
  const keys: Array<string | null> = [];
  await using _gateway = await scriptedGateway(folder.path, {
    uploadImage: async (requests) => {
      const chunks: Uint8Array[] = [];
      for await (const { chunk } of requests) chunks.push(chunk);
      assert.ok(chunks.every((chunk) => chunk.length <= 1024 * 1024));
      archive = Buffer.concat(chunks);
      return { uploadId: "upload_1", digest: "sha256:0", sizeBytes: BigInt(archive.length) };
    },
    createDeployment: (request, context: HandlerContext) => {
      keys.push(context.requestHeader.get("idempotency-key"));
      if (keys.length < 3) throw refusal("SHUTTING_DOWN", "not now");
      assert.deepEqual(request.image?.source, { case: "uploadId", value: "upload_1" });
      assert.deepEqual(
        request.env.map(({ name, value }) => `${name}=${value}`),
        ["A=2", "B=from here"],
      );
      assert.equal(request.resources?.memoryBytes, 512n * 1024n * 1024n);
      assert.equal(request.resources?.vcpuCount, 1);
      return running;
    },
    async *watchDeployment() {
      const step = { kind: "build", startedAtMs: 1000n };
      yield { ...running, steps: [{ ...step, state: StepState.RUNNING }] };
      yield { ...succeeded, steps: [{ ...step, state: StepState.DONE, endedAtMs: 3500n, detail: "cached" }] };
    },
  });
  const options = { home: folder.path, env: { B: "from here" } };
  const argv = ["deploy", "image", "--app", "web", "--env", "A=1", "-e", "A=2", "--env", "B", "--memory", "512MiB"];
  const run = await unkey(options, ...argv);
  assert.equal(run.err, "");
  assert.match(
    run.out,
    /^… upload .*\n✓ upload .* sha256:0\n… build\n✓ build {7}2\.5 s {2}cached\n\nweb serves after .* at https:\/\/web\.localhost:8443\n$/,
  );
  assert.equal(new Set(keys).size, 1);
  assert.match(keys[0] ?? "", /^[0-9a-f-]{36}$/);
  // What arrived is a tar that others read; the directory's other files stayed at home.
  const listed = spawnSync("tar", ["-tvf", "-"], { input: archive, encoding: "utf8" });
  assert.equal(listed.status, 0, listed.stderr);
  const names = listed.stdout
    .trim()
    .split("\n")
    .map((line) => line.split(/\s+/).slice(2).join(" "));
  assert.deepEqual(
    names.map((name) => name.replace(/^(\d+) \S+ \S+ /, "$1 ")),
    ["30 oci-layout", "2 index.json", `700000 blobs/sha256/${"a".repeat(64)}`],
  );
});

test("of an image that was pushed to the platform it says so, with its digest", async () => {
  await using folder = await temporaryFolder();
  const digest = `sha256:${"d".repeat(64)}`;
  const pushed = { image: "web:latest", pushedImage: `web@${digest}` };
  await using _gateway = await scriptedGateway(folder.path, {
    createDeployment: (request) => {
      assert.deepEqual(request.image?.source, { case: "reference", value: "web:latest" });
      return { ...running, ...pushed };
    },
    async *watchDeployment() {
      yield { ...succeeded, ...pushed };
    },
    getDeployment: () => ({ ...succeeded, ...pushed }),
  });
  const run = await unkey({ home: folder.path }, "deploy", "web:latest");
  assert.ok(run.out.startsWith(`image: pushed web:latest @${digest}\n`), run.out);
  const shown = await unkey({ home: folder.path }, "deployments", "show", "dep_1");
  assert.ok(shown.out.includes(`pushed web:latest @${digest}`), shown.out);
  const json = await unkey({ home: folder.path }, "deploy", "web:latest", "--json");
  assert.equal((JSON.parse(json.out) as { pushedImage: string }).pushedImage, pushed.pushedImage);
});

test("a failed deployment shows how the program ended, its last lines and the next step: exit code 1", async () => {
  await using folder = await temporaryFolder();
  await using _gateway = await scriptedGateway(folder.path, {
    createDeployment: () => running,
    async *watchDeployment() {
      yield {
        ...running,
        state: DeploymentState.FAILED,
        failure: {
          step: "health",
          reason: "APP_EXITED",
          message: "the app ended before it was healthy.",
          nextStep: "Read the lines above.",
          exit: { outcome: { case: "code", value: 7 } },
          lastLines: ["starting\u0007", "no such table: users"],
        },
      };
    },
  });
  const run = await unkey({ home: folder.path }, "deploy", "registry.example/app:1");
  assert.equal(run.exitCode, 1);
  assert.equal(
    run.err,
    [
      "error: health failed: the app ended before it was healthy (exit code 7)",
      "  | starting ",
      "  | no such table: users",
      "next:  Read the lines above.",
      "",
    ].join("\n"),
  );
});

test("what the API says in words of the API is said in words of this command line", async () => {
  await using folder = await temporaryFolder();
  let refused = refusal("INVALID_REQUEST", "vm_count: must be at most 3 [uint32.lte]");
  await using _gateway = await scriptedGateway(folder.path, {
    createDeployment: ({ image }) => {
      if (image?.source.value === "fails") return running;
      throw refused;
    },
    async *watchDeployment() {
      const { nextStep } = errorCatalogue.CREDENTIALS_LOST;
      const failure = { step: "build", reason: "CREDENTIALS_LOST", message: "the gateway forgot the login", nextStep };
      yield { ...running, state: DeploymentState.FAILED, failure };
    },
  });
  const run = async (...argv: string[]): Promise<string> => (await unkey({ home: folder.path }, "deploy", ...argv)).err;
  assert.equal(
    await run("registry.example/app:1"),
    "error: --vms: must be at most 3\nnext:  Correct what the message names and run the command again; --help shows what it takes.\n",
  );
  refused = refusal("EXCEEDS_HOSTS", "the largest host has 2 vCPU");
  assert.match(await run("registry.example/app:1"), /\nnext: {2}Ask for less with --memory, --vcpus or --disk/);
  assert.match(
    await run("fails"),
    /^error: build failed: the gateway forgot the login\nnext: {2}Deploy again with --registry/,
  );
  assert.match(
    await run("app:1", "--health-path", "nope"),
    /^error: --health-path: "nope" is no path: it begins with \//,
  );
  refused = refusal("INVALID_REQUEST", "image.reference: must be at most 512 characters");
  assert.match(await run("x".repeat(600)), /^error: the image: must be at most 512 characters\n/);
});

test("a deployment that is not there does not go on without us", async () => {
  await using folder = await temporaryFolder();
  await using _gateway = await scriptedGateway(folder.path, {
    watchDeployment() {
      throw refusal("DEPLOYMENT_NOT_FOUND", "the tenant has no deployment dep_2");
    },
  });
  const run = await unkey({ home: folder.path }, "deployments", "watch", "dep_2");
  assert.equal(
    run.err,
    "error: the tenant has no deployment dep_2\nnext:  List the deployments with `unkey deployments`.\n",
  );
  assert.equal(run.exitCode, 3);
});

test("a watch that breaks is opened again; the deployment is not asked for twice", async () => {
  await using folder = await temporaryFolder();
  let watches = 0;
  let created = 0;
  await using _gateway = await scriptedGateway(folder.path, {
    createDeployment: () => {
      created++;
      return running;
    },
    async *watchDeployment() {
      yield running;
      if (++watches < 3) throw refusal("SHUTTING_DOWN", "restarting");
      yield succeeded;
    },
  });
  const run = await unkey({ home: folder.path }, "deploy", "registry.example/app:1", "--json");
  assert.equal(run.exitCode, 0);
  const states = run.out
    .trim()
    .split("\n")
    .map((line) => (JSON.parse(line) as { state: string }).state);
  assert.deepEqual(states.at(-1), "DEPLOYMENT_STATE_SUCCEEDED");
  assert.deepEqual([watches, created], [3, 1]);
});

test("Ctrl-C detaches, says how to follow or cancel, and cancels nothing", async () => {
  await using folder = await temporaryFolder();
  const interrupt = new AbortController();
  await using _gateway = await scriptedGateway(folder.path, {
    createDeployment: () => running,
    cancelDeployment: () => noClient("nobody asked for this"),
    async *watchDeployment(_request, context) {
      yield { ...running, steps: [{ kind: "build", state: StepState.RUNNING, startedAtMs: 1n }] };
      const ended = Promise.withResolvers<void>();
      context.signal.addEventListener("abort", () => ended.resolve());
      await ended.promise;
    },
  });
  const onOut = (text: string) => text.includes("build") && interrupt.abort(new Interrupted());
  const run = await unkey({ home: folder.path, signal: interrupt.signal, onOut }, "deploy", "registry.example/app:1");
  assert.equal(run.exitCode, 130);
  assert.match(
    run.err,
    /The deployment goes on\. Follow it: unkey deployments watch dep_1 .* unkey deployments cancel dep_1/,
  );
});

test("what is no image is refused before anything is sent, with the command that helps", async () => {
  await using folder = await temporaryFolder();
  const at = (name: string) => join(folder.path, name);
  mkdirSync(at("empty"));
  mkdirSync(join(at("linked"), "blobs/sha256"), { recursive: true });
  writeFileSync(join(at("linked"), "oci-layout"), "{}");
  writeFileSync(join(at("linked"), "index.json"), "{}");
  symlinkSync("/etc/hostname", join(at("linked"), "blobs/sha256", "b".repeat(64)));
  writeFileSync(at("text"), "hello");
  const env = { UNKEY_API_KEY: scriptedKey, UNKEY_API_URL: "https://localhost:1" };
  const cases: Array<[string, RegExp, number]> = [
    [
      "empty",
      /has no Dockerfile to build and is no OCI layout.*\nnext: {2}Write a Dockerfile there.* docker\.io\/library\/empty/,
      2,
    ],
    ["linked", /is not a plain file of an OCI layout/, 2],
    ["text", /is not a tar archive/, 2],
    ["./nowhere", /\.\/nowhere does not exist/, 3],
    ["nowhere.tar", /nowhere\.tar does not exist/, 3],
    ["two words", /is no image reference/, 2],
  ];
  const nameless = await unkey({ home: folder.path, env }, "deploy", "linked");
  assert.match(nameless.err, /a local image has no name to call the app by\nnext: {2}Name the app with --app/);
  assert.equal(nameless.exitCode, 2);
  for (const [image, message, exitCode] of cases) {
    const run = await unkey({ home: folder.path, env }, "deploy", image, "--app", "web");
    assert.match(run.err, message);
    assert.equal(run.exitCode, exitCode, image);
  }
});

test("variables come from files and flags; a registry's password from the environment or stdin, never a flag", async () => {
  await using folder = await temporaryFolder();
  const seen: Array<{ env: string[]; password: string | undefined }> = [];
  await using _gateway = await scriptedGateway(folder.path, {
    createDeployment: ({ env, credentials }) => {
      seen.push({ env: env.map(({ name, value }) => `${name}=${value}`), password: credentials?.password });
      return running;
    },
  });
  writeFileSync(join(folder.path, "app.env"), "# comment\n\nexport A=1\nB='x y'\nC=\"a\\nb\"\nD=a=b\n");
  const base = [
    "deploy",
    "r.example/a",
    "--detach",
    "--registry-user",
    "me",
    "--env-file",
    "app.env",
    "--env",
    "A=flag",
  ];
  const fromStdin = await unkey({ home: folder.path, stdin: "s3cret\n" }, ...base);
  assert.equal(fromStdin.exitCode, 0, fromStdin.err);
  assert.match(fromStdin.out, /^dep_1\nThe deployment goes on/);
  await unkey({ home: folder.path, env: { UNKEY_REGISTRY_PASSWORD: "from env" } }, ...base);
  assert.deepEqual(seen, [
    { env: ["A=flag", "B=x y", "C=a\nb", "D=a=b"], password: "s3cret" },
    { env: ["A=flag", "B=x y", "C=a\nb", "D=a=b"], password: "from env" },
  ]);
  writeFileSync(join(folder.path, "bad.env"), "A=1\nnothing\n");
  const bad = await unkey({ home: folder.path }, "deploy", "r.example/a", "--env-file", "bad.env");
  assert.deepEqual([bad.exitCode, /bad\.env:2 is not NAME=value/.test(bad.err)], [2, true]);
  const unset = await unkey({ home: folder.path }, "deploy", "r.example/a", "--env", "NOT_SET");
  assert.deepEqual([unset.exitCode, /NOT_SET is not set here/.test(unset.err)], [2, true]);
});
