import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Code, ConnectError, type HandlerContext } from "@connectrpc/connect";
import { AppState, DeploymentState, StepState } from "@unkey/api/gateway";
import { VmState } from "@unkey/api/metal";
import { Authority } from "@unkey/pki";
import { profilePath, readProfile, writeProfile } from "../src/connection/profile.ts";
import { Interrupted } from "../src/failure.ts";
import { temporaryFolder, unkey } from "./run.ts";
import { refusal, scriptedGateway, scriptedKey } from "./scripted-gateway.ts";

const noClient = (message: string): never => {
  throw new ConnectError(message, Code.Internal);
};

test("wrong command lines are exit code 2, say what is wrong and name the help that fits", async () => {
  await using folder = await temporaryFolder();
  const cases: Array<[string[], RegExp]> = [
    [["aps"], /no command "aps"\nnext: {2}Did you mean `apps`\?/],
    [["vms", "pause"], /argument <vm-id> is missing\nnext: {2}Run `unkey vms pause --help`/],
    [["deploy", "x", "--port", "70000"], /--port: "70000" is not a whole number from 1 to 65535/],
    [["deploy", "x", "--memory", "1MiB"], /--memory: 1MiB is less than 64 MiB/],
    [["deploy", "x", "--memory", "lots"], /--memory: "lots" is not a size/],
    [["deploy", "x", "--vcpus", "0"], /--vcpus: "0" is not a whole number from 1 to 32/],
    [["deploy", "x", "--prot", "1"], /no flag "--prot"; did you mean --port/],
    [["usage", "--from", "yesterday"], /--from: "yesterday" is not an instant/],
    [["apps", "--limit", "5000"], /--limit: "5000" is not a whole number from 1 to 1000/],
    [["keys", "create", "ci"], /scope/],
    [["delete", "web"], /nobody is there to confirm this\nnext: {2}Add --yes/],
    [["login"], /address of the platform is missing/],
  ];
  for (const [argv, message] of cases) {
    const run = await unkey({ home: folder.path }, ...argv);
    assert.match(run.err, message, argv.join(" "));
    assert.equal(run.exitCode, 2, argv.join(" "));
    assert.equal(run.out, "", argv.join(" "));
  }
});

test("an argument that may be a key is never repeated", async () => {
  await using folder = await temporaryFolder();
  for (const argv of [
    ["login", "uk_secret_1234567890"],
    ["apps", "a", "uk_secret_1234567890"],
    ["config", "uk_secret_1234567890"],
  ]) {
    const run = await unkey({ home: folder.path }, ...argv);
    assert.equal(run.exitCode, 2);
    assert.doesNotMatch(run.err + run.out, /uk_secret/);
  }
});

test("help is complete without a platform and lists the exit codes", async () => {
  await using folder = await temporaryFolder();
  const run = await unkey({ home: folder.path }, "--help");
  assert.equal(run.exitCode, 0);
  assert.match(run.out, /Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not auth/);
});

test("without a profile and a key every API command says how to get one: exit code 4", async () => {
  await using folder = await temporaryFolder();
  const run = await unkey({ home: folder.path }, "apps", "--json");
  assert.equal(run.exitCode, 4);
  const { error } = JSON.parse(run.err) as { error: { message: string; nextStep: string; exitCode: number } };
  assert.match(error.message, /no profile in .* and no UNKEY_API_KEY/);
  assert.match(error.nextStep, /unkey dev up/);
});

test("nobody listening is exit code 5, at once", async () => {
  await using folder = await temporaryFolder();
  writeProfile(folder.path, { url: "https://localhost:1", apiKey: scriptedKey });
  const run = await unkey({ home: folder.path }, "apps");
  assert.equal(run.exitCode, 5);
  assert.match(run.err, /nobody answers at https:\/\/localhost:1\nnext: {2}`unkey dev status`/);
});

test("the profile is 0600, and one that others can read is refused", async () => {
  await using folder = await temporaryFolder();
  writeProfile(folder.path, { url: "https://localhost:1", apiKey: scriptedKey });
  const path = profilePath(folder.path);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  chmodSync(path, 0o640);
  const run = await unkey({ home: folder.path }, "apps");
  assert.equal(run.exitCode, 4);
  assert.match(run.err, /can be read by others\nnext: {2}Run `chmod 600 /);
  assert.doesNotMatch(run.err, new RegExp(scriptedKey));
});

test("the profile's key goes to the profile's address only", async () => {
  await using folder = await temporaryFolder();
  writeProfile(folder.path, { url: "https://localhost:1", apiKey: scriptedKey });
  const run = await unkey({ home: folder.path }, "apps", "--api-url", "https://elsewhere.example");
  assert.equal(run.exitCode, 4);
  assert.match(run.err, /no API key for https:\/\/elsewhere\.example: the profile's belongs to https:\/\/localhost:1/);
});

test("plain http is for this machine only, and an address holds no password", async () => {
  await using folder = await temporaryFolder();
  const env = { UNKEY_API_KEY: scriptedKey };
  const plain = await unkey({ home: folder.path, env }, "apps", "--api-url", "http://unkey.example");
  assert.equal(plain.exitCode, 2);
  assert.match(plain.err, /plain http would show the API key/);
  const password = await unkey({ home: folder.path, env }, "apps", "--api-url", "https://a:b@unkey.example");
  assert.equal(password.exitCode, 2);
});

test("config says where each part comes from and never shows the key", async () => {
  await using folder = await temporaryFolder();
  writeProfile(folder.path, { url: "https://localhost:1", apiKey: scriptedKey });
  const run = await unkey({ home: folder.path, env: { UNKEY_API_KEY: "uk_other_0123456789" } }, "config");
  assert.match(run.out, /address {4}https:\/\/localhost:1 \(profile\)\nAPI key {4}set \(environment\)/);
  assert.doesNotMatch(run.out, /uk_/);
});

test("a server of another authority is not trusted, and the key is not sent", async () => {
  await using folder = await temporaryFolder();
  let asked = 0;
  await using gateway = await scriptedGateway(folder.path, { listApps: () => ({ apps: [{ name: `a${asked++}` }] }) });
  const other = Authority.open(join(folder.path, "other"), { commonName: "other" });
  const otherCa = join(folder.path, "other.pem");
  writeFileSync(otherCa, other.certPem);
  const run = await unkey({ home: folder.path, env: { UNKEY_CA_FILE: otherCa } }, "apps");
  assert.equal(run.exitCode, 4);
  assert.match(run.err, new RegExp(`${gateway.url} cannot be trusted: its certificate .*\nnext: `));
  assert.equal(asked, 0);
});

test("a refusal keeps the service's words, next step and class", async () => {
  await using folder = await temporaryFolder();
  await using _gateway = await scriptedGateway(folder.path, {
    getVm: () => {
      throw refusal("INVALID_REQUEST", "vm_id: \u001b[31mbad");
    },
    pauseVm: () => {
      throw refusal("PERMISSION_DENIED", "this key lacks vms:write");
    },
    stopVm: () => {
      throw new ConnectError("there is no such VM", Code.NotFound);
    },
    resumeVm: () => {
      throw new ConnectError("not built", Code.Unimplemented);
    },
  });
  const { path: home } = folder;
  const bad = await unkey({ home }, "vms", "show", "x");
  assert.deepEqual(
    [bad.exitCode, bad.err],
    [2, "error: vm_id: bad\nnext:  Correct the field that the message names and send it again.\n"],
  );
  assert.equal((await unkey({ home }, "vms", "pause", "x")).exitCode, 4);
  assert.equal((await unkey({ home }, "vms", "stop", "x")).exitCode, 3);
  const missing = await unkey({ home }, "vms", "resume", "x");
  assert.deepEqual([missing.exitCode, missing.err.split("\n").length], [1, 3]);
});

test("a wrong key is exit code 4", async () => {
  await using folder = await temporaryFolder();
  await using _gateway = await scriptedGateway(folder.path, {});
  const run = await unkey({ home: folder.path, env: { UNKEY_API_KEY: "uk_wrong_0123456789" } }, "apps");
  assert.equal(run.exitCode, 4);
  assert.match(run.err, /this key is not known\nnext: {2}Present a valid credential/);
});

test("lists are tables, or the answer itself with --json", async () => {
  await using folder = await temporaryFolder();
  const app = { name: "web", state: AppState.SERVING, url: "https://web.localhost:8443", vmIds: ["vm_1"], image: "i" };
  await using _gateway = await scriptedGateway(folder.path, {
    listApps: ({ pageSize }) => ({ apps: [app], nextPageToken: pageSize === 1 ? "more" : "" }),
    getApp: ({ app: name }) => ({ ...app, name }),
    listVms: () => ({ vms: [{ vmId: "vm_1", state: VmState.STOPPED, exit: { outcome: { case: "code", value: 3 } } }] }),
  });
  const { path: home } = folder;
  const list = await unkey({ home }, "apps", "--limit", "1");
  assert.equal(
    list.out,
    [
      "APP  STATE    VMS  URL                         IMAGE  AGE",
      "web  serving    1  https://web.localhost:8443  i        -",
      "",
    ].join("\n"),
  );
  assert.equal(list.err, "There are more than 1; raise --limit (at most 1000).\n");
  const json = JSON.parse((await unkey({ home }, "apps", "--json")).out) as {
    apps: Array<{ name: string; state: string }>;
  };
  assert.deepEqual([json.apps[0]?.name, json.apps[0]?.state], ["web", "APP_STATE_SERVING"]);
  assert.match((await unkey({ home }, "apps", "other")).out, /^APP.*\nother /);
  assert.match((await unkey({ home }, "vms")).out, /vm_1 {2}stopped .* exit code 3\n/);
});

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
  const argv = ["deploy", "image", "--env", "A=1", "-e", "A=2", "--env", "B", "--memory", "512MiB"];
  const run = await unkey(options, ...argv);
  assert.equal(run.err, "");
  assert.match(
    run.out,
    /^… upload .*\n✓ upload .* sha256:0\n… build\n✓ build {7}2\.5 s {2}cached\n\nweb serves after .* at https:\/\/web\.localhost:8443\n$/,
  );
  assert.equal(new Set(keys).size, 1);
  assert.match(keys[0] ?? "", /^[0-9a-f-]{36}$/);
  // What arrived is a tar that others read; the directory's other files stayed at home.
  const { spawnSync } = await import("node:child_process");
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
  mkdirSync(at("docker"));
  writeFileSync(join(at("docker"), "Dockerfile"), "FROM scratch");
  mkdirSync(at("empty"));
  mkdirSync(join(at("linked"), "blobs/sha256"), { recursive: true });
  writeFileSync(join(at("linked"), "oci-layout"), "{}");
  writeFileSync(join(at("linked"), "index.json"), "{}");
  symlinkSync("/etc/hostname", join(at("linked"), "blobs/sha256", "b".repeat(64)));
  writeFileSync(at("image.tar.gz"), Buffer.from([0x1f, 0x8b, 8, 0]));
  writeFileSync(at("text"), "hello");
  const env = { UNKEY_API_KEY: scriptedKey, UNKEY_API_URL: "https://localhost:1" };
  const cases: Array<[string, RegExp, number]> = [
    [
      "docker",
      /has a Dockerfile but no OCI layout.*\nnext: {2}Make one: docker buildx build --output type=oci,dest=docker\.tar docker && unkey deploy docker\.tar/,
      2,
    ],
    ["empty", /without an OCI layout.*\nnext: {2}Make one: skopeo copy .* docker\.io\/library\/empty/, 2],
    ["linked", /is not a plain file of an OCI layout/, 2],
    ["image.tar.gz", /is compressed\nnext: {2}Unpack it first: gunzip --keep image\.tar\.gz/, 2],
    ["text", /is not a tar archive/, 2],
    ["./nowhere", /\.\/nowhere does not exist/, 3],
    ["nowhere.tar", /nowhere\.tar does not exist/, 3],
    ["two words", /is no image reference/, 2],
  ];
  for (const [image, message, exitCode] of cases) {
    const run = await unkey({ home: folder.path, env }, "deploy", image);
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

test("logs pass bytes through and tell what was dropped", async () => {
  await using folder = await temporaryFolder();
  await using _gateway = await scriptedGateway(folder.path, {
    async *streamLogs(request) {
      assert.deepEqual([request.app, request.vmId, request.follow, request.tailLines], ["", "vm_1", true, 5]);
      yield { vmId: "vm_1", data: Buffer.from("hello "), droppedBytes: 2048n };
      yield { vmId: "vm_1", data: Buffer.from("world\n") };
    },
  });
  const run = await unkey({ home: folder.path }, "logs", "-f", "-n", "5", "vm_1");
  assert.deepEqual([run.out, run.err, run.exitCode], ["hello world\n", "(2 KiB of older output are not kept)\n", 0]);
  const json = await unkey({ home: folder.path }, "logs", "-f", "-n", "5", "vm_1", "--json");
  assert.equal(json.out.trim().split("\n").length, 2);
});

test("a new key goes to stdout alone; login keeps a key only when the platform accepts it", async () => {
  await using folder = await temporaryFolder();
  await using other = await temporaryFolder();
  await using gateway = await scriptedGateway(folder.path, {
    createApiKey: ({ name, scopes }) => {
      assert.deepEqual([name, scopes], ["ci", ["apps:read", "vms:*"]]);
      return { secret: "uk_new_secret", apiKey: { apiKeyId: "key_1" } };
    },
    getPlatform: () => ({ tenantId: "tenant_1" }),
  });
  const created = await unkey(
    { home: folder.path },
    "keys",
    "create",
    "ci",
    "--scope",
    "apps:read",
    "--scope",
    "vms:*",
  );
  assert.deepEqual([created.out, created.err], ["uk_new_secret\n", "This is key_1; it cannot be shown again.\n"]);
  const argv = ["login", "--api-url", gateway.url, "--ca-file", gateway.caFile];
  const refused = await unkey({ home: other.path, stdin: "uk_wrong_0123456789" }, ...argv);
  assert.deepEqual([refused.exitCode, existsSync(profilePath(other.path))], [4, false]);
  const accepted = await unkey({ home: other.path, stdin: `${scriptedKey}\n` }, ...argv);
  assert.equal(accepted.exitCode, 0, accepted.err);
  assert.doesNotMatch(accepted.out, new RegExp(scriptedKey));
  assert.deepEqual(readProfile(other.path), { url: gateway.url, apiKey: scriptedKey, caFile: gateway.caFile });
});
