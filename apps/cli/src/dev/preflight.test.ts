import assert from "node:assert/strict";
import { mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { CliFailure } from "../failure.ts";
import { checkHost, requireHost } from "./preflight.ts";

test("VMs without root are refused with exit code 2 and what root is needed for", () => {
  assert.throws(
    () => requireHost({ env: { PATH: process.env["PATH"] }, uid: 1000 }),
    (error: unknown) => {
      assert.ok(error instanceof CliFailure);
      assert.equal(error.exitCode, 2);
      assert.match(error.message, /^root is needed: network namespaces, taps/);
      assert.match(error.nextStep, /sudo unkey dev up/);
      return true;
    },
  );
});

test("simulated VMs need neither root nor a hypervisor", () => {
  const names = checkHost({ env: { UNKEY_METALD_HYPERVISOR: "memory" }, uid: 1000 })
    .filter(({ name, ok }) => name === "root" && ok)
    .map(({ name }) => name);
  assert.deepEqual(names, ["root"]);
  const checks = checkHost({ env: { UNKEY_METALD_HYPERVISOR: "memory" }, uid: 1000 });
  assert.ok(!checks.some(({ name }) => name === "qemu-system-x86_64"));
});

test("the packages that are missing are named in one command", () => {
  // Debian's sbin folders are always looked at: only a folder without them can lack everything.
  const missing = checkHost({ env: { PATH: "/nowhere" }, uid: 0 }).filter(({ ok }) => !ok);
  assert.ok(missing.length > 0, "qemu lives in /usr/bin, which is not looked at here");
  assert.throws(
    () => requireHost({ env: { PATH: "/nowhere" }, uid: 0 }),
    (error: unknown) => {
      assert.ok(error instanceof CliFailure);
      assert.equal(error.exitCode, 2);
      assert.match(error.nextStep, /^apt-get install .*qemu-system-x86/);
      return true;
    },
  );
});

test("a busybox that needs libraries counts as missing", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "unkey-preflight-"));
  t.after(() => rmSync(folder, { recursive: true }));
  symlinkSync(process.execPath, join(folder, "busybox")); // Node is linked dynamically
  const busybox = checkHost({ env: { PATH: folder }, uid: 0 }).find(({ name }) => name === "busybox");
  assert.equal(busybox?.ok, false);
  assert.equal(busybox.nextStep, "apt-get install busybox-static");
});
