import assert from "node:assert/strict";
import { test } from "node:test";
import { ConfigError, Settings } from "@unkey/daemon";
import { readConfig } from "./config.ts";

const needed = {
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
      for (const part of ["DATA_DIR", "IDENTITY_DIR", "SUBNET", '"dns"', "HYPERVISOR", "BILLAGED_ADDRESS"]) {
        assert.match(text, new RegExp(part));
      }
      return true;
    },
  );
});
