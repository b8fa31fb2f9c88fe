import assert from "node:assert/strict";
import { chmodSync, existsSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import { type App, AppState } from "@unkey/api/gateway";
import { VmState } from "@unkey/api/metal";
import { Authority } from "@unkey/pki";
import { profilePath, readProfile, writeProfile } from "../src/connection/profile.ts";
import { temporaryFolder, unkey } from "./run.ts";
import { refusal, scriptedGateway, scriptedKey } from "./scripted-gateway.ts";

test("wrong command lines are exit code 2, say what is wrong and name the help that fits", async () => {
  await using folder = await temporaryFolder();
  const cases: Array<[string[], RegExp]> = [
    [["aps"], /no command "aps"\nnext: {2}Did you mean `apps`\?/],
    [["vms", "pause"], /argument <vm-id> is missing\nnext: {2}Run `unkey vms pause --help`/],
    [["deploy", "x", "--port", "70000"], /--port: "70000" is not a whole number from 1 to 65535/],
    [["deploy", "x", "--memory", "1MiB"], /--memory: 1MiB is less than 96 MiB/],
    [["deploy", "x", "--app", "My App"], /--app: "My App" is not an app's name; write at most 63 of a-z/],
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

test("a refusal keeps its class, in words of this command line", async () => {
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
    [
      2,
      "error: the VM's id: bad\nnext:  Correct what the message names and run the command again; --help shows what it takes.\n",
    ],
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
  assert.match(run.err, /this key is not known\nnext: {2}Give a valid API key/);
});

test("lists are tables, or the answer itself with --json", async () => {
  await using folder = await temporaryFolder();
  const app = { name: "web", state: AppState.SERVING, url: "https://web.localhost:8443", vmIds: ["vm_1"], image: "i" };
  let apps: Array<Partial<Omit<App, "$typeName" | "$unknown">>> = [app];
  await using _gateway = await scriptedGateway(folder.path, {
    listApps: ({ pageSize }) => ({ apps, nextPageToken: pageSize === 1 ? "more" : "" }),
    getApp: ({ app: name }) => ({ ...app, name }),
    listVms: () => ({
      vms: [
        { vmId: "vm_1", appId: "app_1", state: VmState.STOPPED, exit: { outcome: { case: "code", value: 3 } } },
        { vmId: "vm_2", appId: "app_2", state: VmState.STOPPED },
      ],
      appNames: { app_1: "web" },
    }),
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
  apps = ["half", "web", "other-half"].map((name) => (name === "web" ? app : { name, state: AppState.EMPTY }));
  const empty = await unkey({ home }, "apps");
  assert.match(empty.out, /^half +empty +0 +-/m);
  assert.equal(
    empty.err,
    "Nothing of half and 1 more has served yet. Why: unkey deployments --app half   Remove it: unkey delete half\n",
  );
  const { out: vms } = await unkey({ home }, "vms");
  assert.match(vms, /^vm_1 {2}web +stopped .* exit code 3$/m);
  assert.match(vms, /^vm_2 {2}app_2 +stopped /m, "an app that has no name here");
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
  assert.ok(accepted.out.includes(`docker login ${new URL(gateway.url).host} -u unkey --password-stdin`), accepted.out);
  assert.deepEqual(readProfile(other.path), { url: gateway.url, apiKey: scriptedKey, caFile: gateway.caFile });
});
