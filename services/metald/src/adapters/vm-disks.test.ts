import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { gib, mib } from "@unkey/base";
import { runCommand } from "./run-command.ts";
import { VmDisks } from "./vm-disks.ts";

const owner = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
const mkfs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].some((path) => existsSync(path));

async function folder(t: { after(fn: () => Promise<void>): void }): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), "metald-disks-"));
  t.after(() => rm(dir, { recursive: true }));
  return dir;
}

test("a layer is a sparse, clean ext4 without journal; it is made once, also after a crash", {
  skip: !mkfs && "needs mke2fs",
}, async (t) => {
  const path = join(await folder(t), "upper.ext4");
  await writeFile(`${path}.new`, "what a crash left");
  const disks = new VmDisks();
  await disks.ensureLayer(path, gib, owner);
  const made = await stat(path);
  assert.equal(made.size, gib);
  assert.equal(made.mode & 0o777, 0o600);
  assert.ok(made.blocks * 512 < 4 * mib, `${made.blocks} blocks`);
  assert.equal(existsSync(`${path}.new`), false);
  const features = await runCommand("dumpe2fs", ["-h", path]);
  assert.doesNotMatch(features, /has_journal/);
  await runCommand("e2fsck", ["-fn", path]);
  await disks.ensureLayer(path, gib, owner);
  assert.equal((await stat(path)).ino, made.ino);
});

test("a config drive is whole and private, and a new one replaces it", async (t) => {
  const path = join(await folder(t), "config.img");
  const disks = new VmDisks();
  await disks.writeConfig(path, Buffer.from("first"), owner);
  await disks.writeConfig(path, Buffer.from("second"), owner);
  assert.equal(await readFile(path, "utf8"), "second");
  assert.equal((await stat(path)).mode & 0o777, 0o400);
});

test("removes a folder whatever is in it, twice", async (t) => {
  const dir = join(await folder(t), "vm");
  const disks = new VmDisks();
  await disks.ensureDir(join(dir, "run"), 0o700, owner);
  await writeFile(join(dir, "run", "log"), "");
  await disks.remove(dir);
  await disks.remove(dir);
  assert.equal(existsSync(dir), false);
});
