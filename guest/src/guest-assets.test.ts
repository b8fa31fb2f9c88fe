import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { isServiceError } from "@unkey/base";
import { ensureGuestAssets, isStaticElf } from "./guest-assets.ts";

const hasApt = ["apt-cache", "apt-get", "dpkg-deb"].every((name) => existsSync(`/usr/bin/${name}`));
const hasBusybox = existsSync("/usr/bin/busybox") && isStaticElf(readFileSync("/usr/bin/busybox"));
const needs = (reason: string | false) => (reason === false ? {} : { skip: reason });
const withBusybox = needs(!hasBusybox && "needs a static busybox");
const withApt = needs(!(hasApt && hasBusybox) && "needs apt, dpkg and a static busybox");

const path = process.env["PATH"];
let cacheDir = "";
let binDir = "";
beforeEach(() => {
  cacheDir = mkdtempSync(join(tmpdir(), "guest-assets-"));
  binDir = mkdtempSync(join(tmpdir(), "guest-bin-"));
});
afterEach(() => {
  process.env["PATH"] = path;
  for (const dir of [cacheDir, binDir]) rmSync(dir, { recursive: true });
});

/** Puts programs on PATH, and nothing else. */
function onlyPrograms(programs: Readonly<Record<string, string>>): void {
  for (const [name, script] of Object.entries(programs)) {
    writeFileSync(join(binDir, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(binDir, name), 0o755);
  }
  process.env["PATH"] = binDir;
}

const ensure = () => ensureGuestAssets({ cacheDir, signal: AbortSignal.timeout(120_000) });
const unavailable = (words: RegExp) => (error: unknown) =>
  isServiceError(error, "GUEST_ASSETS_UNAVAILABLE") && words.test(error.message);

test("two at once fetch one kernel; a third finds it without apt", withApt, async () => {
  const [first, second] = await Promise.all([ensure(), ensure()]);
  assert.deepEqual(second, first);
  assert.match(first.kernelVersion, /^\d+\.\d+.*-cloud-/);
  assert.match(dirname(first.kernelPath), /\/[0-9a-f]{64}$/);
  for (const file of [first.kernelPath, first.initrdPath]) assert.ok(existsSync(file));
  assert.deepEqual(
    readdirSync(join(cacheDir, "kernels")).filter((name) => name.includes("partial")),
    [],
  );
  onlyPrograms({});
  assert.deepEqual(await ensure(), first);
});

test("a host without apt is told so", withBusybox, async () => {
  onlyPrograms({});
  await assert.rejects(ensure(), unavailable(/apt-cache is not on this host/));
});

test("a host whose apt knows nothing is told what to run, or has it run", withBusybox, async () => {
  const log = join(binDir, "log");
  onlyPrograms({ "apt-cache": "exit 100", "apt-get": `echo "$@" >>${log}` });
  const isRoot = process.getuid?.() === 0;
  await assert.rejects(ensure(), unavailable(isRoot ? /add a Debian mirror/ : /run "sudo apt-get update"/));
  assert.equal(existsSync(log) ? readFileSync(log, "utf8") : "", isRoot ? "update\n" : "");
});

test("apt's failure is told in its own words", withBusybox, async () => {
  onlyPrograms({ ...index("0".repeat(64)), "apt-get": "echo 'E: no route to mirror' >&2; exit 100" });
  await assert.rejects(ensure(), unavailable(/apt-get download failed: E: no route to mirror/));
});

test("a package with another digest than the index says is not used", withBusybox, async () => {
  onlyPrograms({ ...index("0".repeat(64)), "apt-get": "echo wrong >linux-image-x_1_amd64.deb" });
  await assert.rejects(ensure(), unavailable(/has digest [0-9a-f]{64}, apt's index says 0{64}/));
  assert.deepEqual(readdirSync(join(cacheDir, "kernels")), []);
});

test("a caller may give up", withBusybox, async () => {
  const reason = new Error("withdrawn");
  const signal = AbortSignal.abort(reason);
  await assert.rejects(ensureGuestAssets({ cacheDir, signal }), (error) => error === reason);
});

test("a busybox that needs libraries is told from one that does not", withBusybox, () => {
  assert.equal(isStaticElf(readFileSync("/usr/bin/busybox")), true);
  assert.equal(isStaticElf(readFileSync("/bin/sh")), false);
  assert.equal(isStaticElf(Buffer.from("#!/bin/sh\n")), false);
});

function index(sha256: string): Record<string, string> {
  const show = `printf 'Package: linux-image-x\\nVersion: 1\\nSHA256: ${sha256}\\n'`;
  return { "apt-cache": `case $1 in depends) echo '  Depends: linux-image-x' ;; show) ${show} ;; esac` };
}
