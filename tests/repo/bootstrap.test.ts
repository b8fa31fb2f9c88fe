import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";

const script = join(import.meta.dirname, "../../scripts/bootstrap.mjs");
const isRoot = process.getuid?.() === 0;
/** Somebody who may do nothing on this host, so that a broken guard harms nothing either. */
const nobody = isRoot ? { uid: 65_534, gid: 65_534 } : {};
const probe = spawnSync(process.execPath, ["--check", script], nobody);
const skip = probe.status !== 0 && "this checkout lies where only root can read it";

for (const name of ["demo", "bench"]) {
  test(`npm run ${name} without root says what needs root and exits 2`, { skip }, () => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [script, name], { ...nobody, encoding: "utf8" });
    assert.equal(status, 2, stdout + stderr);
    assert.match(stderr, /needs root: for network namespaces, taps, nftables, cgroups and one\s+user id per VM/);
    assert.match(stderr, new RegExp(`sudo npm run ${name}`));
    assert.equal(stdout, "", "nothing was begun");
  });
}

test("a word that is no command is refused with those that there are", () => {
  const { status, stderr } = spawnSync(process.execPath, [script, "dmeo"], { encoding: "utf8" });
  assert.equal(status, 2);
  assert.match(stderr, /demo\|test\|check\|bench/);
});
