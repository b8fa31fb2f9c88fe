import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { makeSigningKey } from "@unkey/attest/testing";
import { ConfigError, Settings } from "@unkey/daemon";
import { readConfig } from "./config.ts";

const folder = mkdtempSync(join(tmpdir(), "metald-config-"));
after(() => rmSync(folder, { recursive: true, force: true }));
const keysFile = join(folder, "keys.pem");
writeFileSync(keysFile, makeSigningKey().publicKeyPem);

const needed = {
  UNKEY_METALD_PROVENANCE_KEYS_FILE: keysFile,
  UNKEY_METALD_DATA_DIR: "/var/lib/unkey/metald",
  UNKEY_METALD_IDENTITY_DIR: "/etc/unkey",
  UNKEY_METALD_ASSETMANAGERD_ADDRESS: "127.0.0.1:8083",
  UNKEY_METALD_BILLAGED_ADDRESS: "127.0.0.1:8081",
};

function read(env: Record<string, string>) {
  const settings = new Settings("metald", env);
  const config = readConfig(settings);
  settings.done();
  return config;
}

test("has a default for whatever an operator need not decide", () => {
  const config = read(needed);
  assert.equal(config.hypervisor, "qemu");
  assert.equal(config.guestDir, "/var/lib/unkey/metald/guest");
  assert.equal(config.subnet, undefined);
  assert.ok(config.memoryCapacityBytes > 0);
});

test("tells every mistake at once", () => {
  assert.throws(
    () =>
      read({
        UNKEY_METALD_SUBNET: "10.0.0.1/20",
        UNKEY_METALD_RESOLVERS: "1.1.1.1,dns",
        UNKEY_METALD_HYPERVISOR: "xen",
      }),
    (error) => {
      assert.ok(error instanceof ConfigError);
      const text = error.mistakes.join("\n");
      for (const part of [
        "DATA_DIR",
        "IDENTITY_DIR",
        "SUBNET",
        '"dns"',
        "HYPERVISOR",
        "BILLAGED_ADDRESS",
        "PROVENANCE_KEYS_FILE",
      ]) {
        assert.match(text, new RegExp(part));
      }
      return true;
    },
  );
});

test("a data directory too deep for the sockets of its VMs is a mistake, not a failing first VM", () => {
  const dataDir = (bytes: number) => `/${"d".repeat(bytes - 1)}`;
  assert.equal(read({ ...needed, UNKEY_METALD_DATA_DIR: dataDir(56) }).dataDir, dataDir(56));
  const deep = { ...needed, UNKEY_METALD_DATA_DIR: dataDir(57) };
  assert.throws(
    () => read(deep),
    (error) => error instanceof ConfigError && /DATA_DIR: has 57 bytes; .* room for 56/.test(error.mistakes.join()),
  );
  assert.equal(read({ ...deep, UNKEY_METALD_HYPERVISOR: "memory" }).hypervisor, "memory");
});

test("without keys that it can read, metald does not start, and says what to do", () => {
  const { UNKEY_METALD_PROVENANCE_KEYS_FILE: _, ...without } = needed;
  assert.throws(() => read(without), /PROVENANCE_KEYS_FILE is required: .*`unkey dev up` makes one/);
  const broken = join(folder, "broken.pem");
  writeFileSync(broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
  assert.throws(
    () => read({ ...needed, UNKEY_METALD_PROVENANCE_KEYS_FILE: broken }),
    /is a CERTIFICATE, not a PUBLIC KEY/,
  );
  assert.throws(() => read({ ...needed, UNKEY_METALD_PROVENANCE_KEYS_FILE: join(folder, "none") }), /ENOENT/);
});
