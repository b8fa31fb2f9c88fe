import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { kvmDevice, launchCommand, missingDevices, tunDevice } from "./launch.ts";

test("the launcher notes its pid, joins its cgroups and keeps every word of the command", () => {
  const dir = mkdtempSync(join(tmpdir(), "launch-"));
  try {
    const cgroups = ["a b", "c'd"].map((name) => join(dir, name));
    for (const path of cgroups) writeFileSync(path, "");
    const words = ["--", "$(id)", "it's", "two words", ""];
    const [program, ...args] = launchCommand(["printf", "%s\\n", ...words], {
      launch: { cgroupProcsPaths: cgroups },
      pidFile: join(dir, "pid"),
      deviceDir: dir,
      privateDevices: [],
      maxFileBytes: 1_000_000,
    });
    const { stdout, stderr, pid } = spawnSync(program, args, { encoding: "utf8" });
    assert.equal(stderr, "");
    assert.equal(stdout, words.map((word) => `${word}\n`).join(""));
    for (const path of [join(dir, "pid"), ...cgroups]) assert.equal(readFileSync(path, "utf8"), `${pid}\n`);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("a link in place of the pid file stops the launch", () => {
  const dir = mkdtempSync(join(tmpdir(), "launch-"));
  try {
    writeFileSync(join(dir, "victim"), "untouched");
    symlinkSync(join(dir, "victim"), join(dir, "pid"));
    const plan = { launch: {}, pidFile: join(dir, "pid"), deviceDir: dir, privateDevices: [], maxFileBytes: 1 };
    const [program, ...args] = launchCommand(["echo", "ran"], plan);
    const { stdout, status } = spawnSync(program, args, { encoding: "utf8" });
    assert.notEqual(status, 0);
    assert.equal(stdout, "");
    assert.equal(readFileSync(join(dir, "victim"), "utf8"), "untouched");
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("namespace, device nodes, limits and user come in the order in which each is still allowed", () => {
  const command = launchCommand(["qemu"], {
    launch: { netns: "vm1", user: { uid: 10, gid: 20 } },
    pidFile: "/d/pid",
    deviceDir: "/d/dev",
    privateDevices: [tunDevice, kvmDevice],
    maxFileBytes: 7,
  });
  const text = command.join(" ");
  const order = [
    "ip netns exec vm1",
    "/d/dev 10:20 /dev/net/tun 10 200 /dev/kvm 10 232 --",
    "prlimit",
    "setpriv",
    "-- qemu",
  ];
  const places = order.map((part) => text.indexOf(part));
  assert.ok(
    places.every((place) => place > 0),
    text,
  );
  assert.deepEqual(
    places.toSorted((a, b) => a - b),
    places,
  );
  assert.ok(!text.includes("unshare"));
  assert.match(text, /--reuid=10 --regid=20 --clear-groups .*--bounding-set=-all --no-new-privs/);
});

test("the caller and root need no device nodes of their own", () => {
  assert.deepEqual(missingDevices([tunDevice], {}), []);
  assert.deepEqual(missingDevices([tunDevice], { user: { uid: 0, gid: 0 } }), []);
});
