import assert from "node:assert/strict";
import { test } from "node:test";
import { type LaunchPlan, launchCommand, mountTable } from "./launch.ts";

const plan: LaunchPlan = {
  confinement: "namespaces",
  cgroupProcsPaths: ["/cg/a/cgroup.procs"],
  limits: { fileBytes: 1000, openFiles: 64, processes: 32 },
  uid: 70_000,
  directory: "/data/scratch/job",
  mountPoint: "/data/sandbox/root",
  mountTablePath: "/data/sandbox/job.fstab",
};

test("rights are dropped after everything that needs them, and right before the program", () => {
  const words = launchCommand(["/node", "main.ts"], plan);
  const at = (word: string): number => {
    const index = words.indexOf(word);
    assert.notEqual(index, -1, `${word} is not in ${words.join(" ")}`);
    return index;
  };
  assert.ok(at("/cg/a/cgroup.procs") < at("unshare"), "in its cgroup before anything else");
  assert.ok(at("unshare") < at("/data/sandbox/job.fstab"));
  assert.ok(at("/data/sandbox/job.fstab") < at("--reuid=70000"));
  assert.ok(at("--core=0") < at("--reuid=70000"));
  assert.ok(at("--nproc=32") < at("--reuid=70000"));
  for (const word of ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]) at(word);
  assert.deepEqual(words.slice(-3), ["--chdir=/job", "/node", "main.ts"]);
  assert.equal(words.filter((word) => word === "--pdeathsig=KILL").length, 2, "changing the user clears it");
});

test("without root there is neither user nor namespace, and still no new privileges", () => {
  const words = launchCommand(["/node"], { ...plan, confinement: "none" });
  assert.ok(words.includes("--no-new-privs") && words.includes("--fsize=1000"));
  assert.ok(!words.some((word) => word.startsWith("--reuid") || word === "unshare"));
});

test("paths in a mount table are escaped", () => {
  const table = mountTable({ directory: "/da ta/\\job", mountPoint: "/m\tp" }, ["/a#b\nc"], ["/usr"]);
  assert.match(table, /^\/da\\040ta\/\\134job \/m\\011p\/job none bind,/m);
  assert.match(table, /^\/a\\043b\\012c \/m\\011p\/a\\043b\\012c none bind,ro,/m);
  assert.ok(table.split("\n").every((line) => line === "" || line.split(" ").length === 6));
});
