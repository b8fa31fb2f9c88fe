import assert from "node:assert/strict";
import { chmodSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { isServiceError, type TenantId } from "@unkey/base";
import { createLogger } from "@unkey/daemon";
import { parseImageReference } from "@unkey/oci";
import { CredentialFile } from "./credential-file.ts";

const [acme, other] = ["tenant_acme", "tenant_other"] as [TenantId, TenantId];

async function setup(context: TestContext) {
  const directory = await mkdtemp(join(tmpdir(), "registry-logins-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const lines: string[] = [];
  const log = createLogger({ level: "trace", write: (line) => lines.push(line) });
  const path = join(directory, "logins.json");
  const secretFile = join(directory, "secret");
  const write = (value: unknown, mode = 0o600): void => {
    rmSync(path, { force: true });
    writeFileSync(path, typeof value === "string" ? value : JSON.stringify(value), { mode });
  };
  return { path, secretFile, lines, write, open: () => new CredentialFile(path, log) };
}

const find = async (store: CredentialFile, tenant: TenantId, image: string) => {
  const found = await store.find(tenant, parseImageReference(image));
  return found && `${found.username}:${found.password}`;
};

test("a tenant's login for an image is found by its longest prefix; nobody gets another tenant's", async (context) => {
  const { write, open, secretFile, lines } = await setup(context);
  writeFileSync(secretFile, "from file\n", { mode: 0o600 });
  write({
    [acme]: {
      "r.example:5000": { username: "all", password: "pw1" },
      "r.example:5000/team": { username: "team", passwordFile: secretFile },
    },
  });
  const store = open();
  assert.equal(await find(store, acme, "r.example:5000/app"), "all:pw1");
  assert.equal(await find(store, acme, "r.example:5000/team/app:v1"), "team:from file");
  assert.equal(await find(store, acme, "debian"), undefined);
  assert.equal(await find(store, other, "r.example:5000/app"), undefined);
  assert.ok(!/pw1|from file/.test(lines.join("\n")));
});

test("a change is seen at the next build, of a password's own file too", async (context) => {
  const { write, open, secretFile } = await setup(context);
  writeFileSync(secretFile, "old", { mode: 0o600 });
  write({ [acme]: { "r.example": { username: "a", passwordFile: secretFile } } });
  const store = open();
  assert.equal(await find(store, acme, "r.example/x"), "a:old");
  writeFileSync(secretFile, "newer");
  assert.equal(await find(store, acme, "r.example/x"), "a:newer");
  write({});
  assert.equal(await find(store, acme, "r.example/x"), undefined);
});

test("a file that others can read is refused at the start, and gives no login when it becomes so", async (context) => {
  const { path, write, open, lines } = await setup(context);
  const logins = { [acme]: { "r.example": { username: "a", password: "hidden" } } };
  write(logins, 0o640);
  assert.throws(open, /can be read by others; run chmod 600/);
  write(logins);
  const store = open();
  chmodSync(path, 0o644);
  await assert.rejects(find(store, acme, "r.example/x"), (error) =>
    isServiceError(error, "REGISTRY_CREDENTIALS_UNUSABLE"),
  );
  assert.throws(() => store.check(), /read by others/);
  assert.equal(await find(store, acme, "debian"), undefined, "an image that needs no login is built still");
  chmodSync(path, 0o600);
  assert.equal(await find(store, acme, "r.example/x"), "a:hidden");
  assert.ok(!lines.join("\n").includes("hidden"));
});

for (const [what, value, words] of [
  ["that is not JSON", "secret {", /it is not JSON$/],
  ["of a list", [], /the file is not an object/],
  [
    "with a prefix that is no registry",
    { t: { library: { username: "a", password: "b" } } },
    /"library" is no registry/,
  ],
  ["with a prefix that is a URL", { t: { "https://r.example": { username: "a", password: "b" } } }, /is no registry/],
  ["without a password", { t: { "r.example": { username: "a" } } }, /either password or passwordFile/],
  ["with both passwords", { t: { "r.example": { username: "a", password: "b", passwordFile: "/x" } } }, /either/],
  ["with a relative password file", { t: { "r.example": { username: "a", passwordFile: "x" } } }, /absolute/],
  ["with a missing password file", { t: { "r.example": { username: "a", passwordFile: "/nonexistent/x" } } }, /ENOENT/],
  ["with a colon in a user name", { t: { "r.example": { username: "a:b", password: "b" } } }, /colon/],
  ["with an unknown field", { t: { "r.example": { username: "a", password: "b", realm: "c" } } }, /no "realm"/],
] as const) {
  test(`a file ${what} is refused without quoting it`, async (context) => {
    const { write, open } = await setup(context);
    write(value);
    assert.throws(open, words);
  });
}
