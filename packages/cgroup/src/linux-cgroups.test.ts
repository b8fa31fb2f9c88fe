import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { mib } from "@unkey/base";
import { detectCgroups } from "./cgroup-layout.ts";
import { LinuxCgroups } from "./linux-cgroups.ts";

const layout = await detectCgroups();
const skip = typeof layout === "string" && layout;
const limits = { cpuCount: 2, memoryBytes: 300 * mib, maxProcesses: 50 };

test("a group has its limits, counts its processes, and goes when they have gone", { skip }, async () => {
  const id = randomBytes(3).toString("hex");
  const cgroups = await LinuxCgroups.open(`unkey-${id}`);
  assert.equal(cgroups.active, true, cgroups.detail);
  await cgroups.ensure("vm_one", limits);
  await cgroups.ensure("vm_one", limits);
  const joins = cgroups.procsPaths("vm_one");
  assert.deepEqual(await cgroups.present(), ["vm_one"]);
  const child = spawn("sleep", ["30"], { stdio: "ignore" });
  for (const path of joins) await writeFile(path, String(child.pid));
  assert.deepEqual(await cgroups.processes("vm_one"), [child.pid]);
  const files = cgroups.counterFiles("vm_one") ?? assert.fail();
  assert.match(readFileSync(files.cpu.path, "utf8"), /\d/);
  assert.match(readFileSync(files.memory, "utf8"), /^\d+\n$/);
  const removed = cgroups.remove("vm_one"); // waits for the process below
  child.kill("SIGKILL");
  await Promise.all([removed, once(child, "exit")]);
  await cgroups.remove("vm_one");
  assert.deepEqual(await cgroups.present(), []);
  await cgroups.close();
  for (const path of joins) assert.equal(existsSync(dirname(dirname(path))), false);
});

test("a group is killed with all that its processes have started", { skip }, async () => {
  const parent = `unkey-${randomBytes(3).toString("hex")}`;
  const cgroups = await LinuxCgroups.open(parent);
  await cgroups.ensure("forks", { cpuCount: 1, memoryBytes: 100 * mib, maxProcesses: 20 });
  // Each shell waits to be in the group before it starts others, which are not children of this process.
  const script = 'for file; do echo $$ >"$file"; done; for i in 1 2 3; do setsid sleep 300 & done; echo ready; wait';
  const child = spawn("/bin/sh", ["-c", script, "sh", ...cgroups.procsPaths("forks")], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  await once(child.stdout, "data");
  assert.equal((await cgroups.processes("forks")).length, 4);
  assert.equal(await cgroups.outOfMemory("forks"), false);
  await cgroups.kill("forks");
  await cgroups.kill("forks");
  await cgroups.remove("forks");
  assert.deepEqual(await cgroups.present(), []);
  await cgroups.close();
});

test("a group that has run out of memory says so", { skip }, async () => {
  const parent = `unkey-${randomBytes(3).toString("hex")}`;
  const cgroups = await LinuxCgroups.open(parent);
  await cgroups.ensure("large", { cpuCount: 1, memoryBytes: 40 * mib, maxProcesses: 20 });
  const script = 'for file; do echo $$ >"$file"; done; exec dd if=/dev/zero of=/dev/null bs=200M count=1';
  const child = spawn("/bin/sh", ["-c", script, "sh", ...cgroups.procsPaths("large")], { stdio: "ignore" });
  await once(child, "exit");
  assert.equal(await cgroups.outOfMemory("large"), true);
  await cgroups.remove("large");
  await cgroups.close();
});

test("writes the limits that cgroup v2 knows, into the controllers that it delegates", async (t) => {
  const root = await mkdtemp(join(tmpdir(), "cgroup2-"));
  t.after(() => rm(root, { recursive: true }));
  await writeFile(join(root, "cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n");
  await writeFile(join(root, "mountinfo"), `30 23 0:26 / ${root} rw,nosuid - cgroup2 cgroup2 rw\n`);
  const found = await detectCgroups(join(root, "mountinfo"));
  if (typeof found === "string") {
    t.skip(found);
    return;
  }
  const [hierarchy] = found.hierarchies;
  assert.equal(hierarchy?.delegate, "+cpu +memory +pids");
  assert.deepEqual(Object.fromEntries(hierarchy.settings(limits)), {
    "cpu.max": "200000 100000",
    "memory.max": "314572800",
    "pids.max": "50",
  });
  await mkdir(join(root, "g"));
  await writeFile(found.counterFiles("g").cpu.path, "usage_usec 5\nuser_usec 3\n");
  assert.equal(await readFile(join(root, "g", "cpu.stat"), "utf8"), "usage_usec 5\nuser_usec 3\n");
});

test("says what is missing where v2 has no controllers and v1 lacks one", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "cgroup-mounts-"));
  t.after(() => rm(dir, { recursive: true }));
  const path = join(dir, "mountinfo");
  await writeFile(
    path,
    "31 23 0:27 / /nowhere rw - cgroup2 cgroup2 rw\n32 23 0:28 / /v1/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
  );
  const found = await detectCgroups(path);
  assert.match(
    typeof found === "string" ? found : found.detail,
    process.getuid?.() === 0 ? /neither cgroup v2 nor/ : /needs root/,
  );
});
