import assert from "node:assert/strict";
import { mkdirSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { loadIdentity } from "@unkey/pki";
import { profilePath, readProfile, writeProfile } from "../src/connection/profile.ts";
import { platformDaemons, trustDomain } from "../src/dev/daemon-environment.ts";
import { openHome } from "../src/dev/home.ts";
import { keepProfile } from "../src/dev/keep-profile.ts";
import { unkeyPlatform } from "../src/dev/platform.ts";
import { temporaryFolder } from "./run.ts";

const noSignal = new AbortController().signal;

test("each daemon and the operator get an identity of one authority, and a lost one is issued again", async () => {
  await using folder = await temporaryFolder();
  const home = openHome(folder.path);
  const platform = unkeyPlatform(home, { UNKEY_METALD_HYPERVISOR: "memory" });
  for (const task of platform.tasks) await task.run(() => undefined, noSignal);
  const names = [...platform.daemons.map(({ name }) => name), "operator"];
  assert.equal(names.length, 7);
  const identities = names.map((service) => loadIdentity(home.identityDir(service), { service, trustDomain }));
  assert.equal(new Set(identities.map(({ caPem }) => caPem)).size, 1);
  assert.equal(statSync(join(home.identityDir("metald"), "tls.key")).mode & 0o777, 0o600);
  assert.ok(identities.every(({ expiresAtMs }) => expiresAtMs <= Date.now() + 86_400_000));
  rmSync(home.identityDir("metald"), { recursive: true });
  platform.renewIdentity("metald");
  assert.equal(loadIdentity(home.identityDir("metald"), { service: "metald" }).caPem, identities[0]?.caPem);
});

test("a daemon gets its own settings alone; what the user sets wins, except what the supervisor relies on", async () => {
  await using folder = await temporaryFolder();
  const home = openHome(folder.path);
  const env = {
    UNKEY_BILLING_AGGREGATOR_LOG_LEVEL: "debug",
    UNKEY_BILLAGED_DATA_DIR: "/elsewhere",
    UNKEY_BILLAGED_ADDRESS_FILE: "/elsewhere/too",
    UNKEY_API_KEY: "uk_secret_0123456789",
  };
  const settingsOf = (name: string) =>
    platformDaemons(env)
      .find((daemon) => daemon.name === name)
      ?.environment({ home, ports: { rpc: 0, health: 1 } }) ?? {};
  const billaged = settingsOf("billaged");
  assert.equal(billaged["UNKEY_BILLAGED_DATA_DIR"], "/elsewhere");
  assert.equal(billaged["UNKEY_BILLAGED_ADDRESS_FILE"], home.addressFile("billaged"));
  assert.equal(billaged["UNKEY_BILLAGED_HEALTH_PORT"], "1");
  assert.ok(Object.keys(billaged).every((key) => key.startsWith("UNKEY_BILLAGED_")));
  assert.equal(settingsOf("billing-aggregator")["UNKEY_BILLING_AGGREGATOR_LOG_LEVEL"], "debug");
});

test("the profile follows the platform of its home, keeps a key that the user chose, and leaves other platforms alone", async () => {
  await using folder = await temporaryFolder();
  const home = openHome(folder.path);
  keepProfile(home, "127.0.0.1:8000");
  assert.equal(readProfile(home.root), undefined, "no key was made yet");
  const keyFile = join(home.dataDir("gatewayd"), "bootstrap-key");
  mkdirSync(home.dataDir("gatewayd"), { recursive: true });
  writeFileSync(keyFile, "uk_first_0123456789\n");
  keepProfile(home, "127.0.0.1:8000");
  const first = { url: "https://localhost:8000", apiKey: "uk_first_0123456789", caFile: home.publicCaFile };
  assert.deepEqual(readProfile(home.root), first);

  writeProfile(home.root, { ...first, apiKey: "uk_chosen_0123456789" });
  keepProfile(home, "127.0.0.1:9000");
  assert.deepEqual(readProfile(home.root), { ...first, url: "https://localhost:9000", apiKey: "uk_chosen_0123456789" });

  const later = statSync(profilePath(home.root)).mtimeMs / 1000 + 10;
  writeFileSync(keyFile, "uk_anew_0123456789\n");
  utimesSync(keyFile, later, later);
  keepProfile(home, "127.0.0.1:9000");
  assert.equal(readProfile(home.root)?.apiKey, "uk_anew_0123456789");

  const elsewhere = { url: "https://unkey.example", apiKey: "uk_other_0123456789" };
  writeProfile(home.root, elsewhere);
  keepProfile(home, "127.0.0.1:8000");
  assert.deepEqual(readProfile(home.root), elsewhere);
});
