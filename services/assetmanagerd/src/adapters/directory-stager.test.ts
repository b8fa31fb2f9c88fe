import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import {
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { isServiceError } from "@unkey/base";
import { DirectoryStager } from "./directory-stager.ts";
import { copySparse } from "./sparse-copy.ts";

let dir = "";
let root = "";
let blobPath = "";
const signal = new AbortController().signal;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "stage-"));
  root = join(dir, "jails");
  blobPath = join(dir, "blob");
  mkdirSync(root);
  mkdirSync(join(dir, "outside"));
  writeFileSync(blobPath, "content", { mode: 0o444 });
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

async function refuses(target: string, message: RegExp): Promise<void> {
  await assert.rejects(
    new DirectoryStager([root]).stage(target, [{ blobPath, fileName: "rootfs" }], signal),
    (error: unknown) => {
      assert.ok(isServiceError(error, "STAGING_TARGET_REFUSED"), String(error));
      assert.match(error.message, message);
      return true;
    },
  );
}

test("a file is hard-linked into directories that it makes, and again without harm", async () => {
  const stager = new DirectoryStager([root]);
  const target = join(root, "vm_1", "assets");
  const placements = [
    { blobPath, fileName: "rootfs" },
    { blobPath, fileName: "kernel" },
  ];
  assert.deepEqual(await stager.stage(target, placements, signal), ["hard_link", "hard_link"]);
  assert.deepEqual(await stager.stage(target, placements, signal), ["hard_link", "hard_link"]);
  assert.equal(statSync(join(target, "rootfs")).ino, statSync(blobPath).ino);
  assert.equal(statSync(join(root, "vm_1")).mode & 0o777, 0o700);
  assert.deepEqual(readdirSync(target).toSorted(), ["kernel", "rootfs"]);
});

test("another file system gets a copy", async (t) => {
  if (!existsSync("/dev/shm") || statSync("/dev/shm").dev === statSync(dir).dev) {
    return t.skip("needs /dev/shm on a file system of its own");
  }
  const far = mkdtempSync("/dev/shm/stage-");
  t.after(() => rmSync(far, { recursive: true, force: true }));
  const target = join(far, "vm_1");
  assert.deepEqual(await new DirectoryStager([far]).stage(target, [{ blobPath, fileName: "rootfs" }], signal), [
    "copy",
  ]);
  assert.equal(readFileSync(join(target, "rootfs"), "utf8"), "content");
  assert.deepEqual(readdirSync(target), ["rootfs"]);
});

test("a copy keeps the content and leaves holes where it is zero", async () => {
  const piece = 64 * 1024;
  const content = Buffer.alloc(40 * piece + 1234);
  content.fill("x", 3 * piece + 7, 4 * piece); // not on a boundary
  content.fill("y", 20 * piece, 22 * piece);
  content[content.length - 1] = 1;
  writeFileSync(blobPath, content, { mode: 0o600 });
  const target = join(dir, "sparse");
  await copySparse(blobPath, target);
  assert.ok(readFileSync(target).equals(content));
  const { blocks, size, mode } = statSync(target);
  assert.equal(size, content.length);
  assert.equal(mode & 0o777, 0o444);
  assert.ok(blocks * 512 <= 6 * piece, `${blocks * 512} bytes are stored`);
  for (const length of [0, 1, piece, piece + 1]) {
    writeFileSync(blobPath, Buffer.alloc(length));
    await copySparse(blobPath, join(dir, `zeros-${length}`));
    assert.ok(readFileSync(join(dir, `zeros-${length}`)).equals(Buffer.alloc(length)));
  }
});

test("where the file system can share blocks and a hard link cannot be made, blocks are shared", async (t) => {
  const obstacle = reflinkObstacle();
  if (obstacle !== undefined) return t.skip(obstacle);
  const image = join(dir, "xfs.img");
  const mounted = join(dir, "xfs");
  const seen = join(dir, "seen"); // the same file system through another mount: links refuse to cross, clones do not
  mkdirSync(mounted);
  mkdirSync(seen);
  writeFileSync(image, "");
  truncateSync(image, 512 * 1024 * 1024);
  execFileSync("mkfs.xfs", ["-q", "-m", "reflink=1", image]);
  const mounts: string[] = [];
  const mount = (args: readonly string[], at: string) => {
    execFileSync("mount", [...args, at]);
    mounts.unshift(at);
  };
  try {
    mount(["-o", "loop", image], mounted);
    mkdirSync(join(mounted, "vms"));
    mount(["--bind", join(mounted, "vms")], seen);
    writeFileSync(join(mounted, "blob"), "x".repeat(100_000), { mode: 0o444 });
    const placements = [{ blobPath: join(mounted, "blob"), fileName: "rootfs" }];
    assert.deepEqual(await new DirectoryStager([seen]).stage(join(seen, "vm_1"), placements, signal), ["reflink"]);
    assert.equal(readFileSync(join(seen, "vm_1", "rootfs"), "utf8"), "x".repeat(100_000));
  } finally {
    for (const at of mounts) execFileSync("umount", [at]);
  }
});

function reflinkObstacle(): string | undefined {
  if (process.getuid?.() !== 0) return "mounting needs root";
  if (spawnSync("mkfs.xfs", ["-V"]).status !== 0) return "needs mkfs.xfs (package xfsprogs)";
  if (!/\bxfs\b/.test(readFileSync("/proc/filesystems", "utf8"))) return "this kernel has no xfs";
  if (spawnSync("losetup", ["-f"]).status !== 0) return "there is no loop device";
  return undefined;
}

test("what lies in the way is replaced, a link there is not followed, and its holder keeps the old file", async () => {
  const target = join(root, "vm_1");
  mkdirSync(target);
  const victim = join(dir, "outside", "victim");
  writeFileSync(victim, "untouched");
  symlinkSync(victim, join(target, "rootfs"));
  symlinkSync(victim, join(target, ".kernel.staging"));
  linkSync(victim, join(target, "kernel"));
  await new DirectoryStager([root]).stage(
    target,
    [
      { blobPath, fileName: "rootfs" },
      { blobPath, fileName: "kernel" },
    ],
    signal,
  );
  assert.equal(readFileSync(victim, "utf8"), "untouched");
  assert.equal(lstatSync(join(target, "rootfs")).isFile(), true);
  assert.equal(readFileSync(join(target, "kernel"), "utf8"), "content");
});

test("a target outside the roots is refused, however it is written", async () => {
  for (const target of [
    root,
    `${root}/`,
    join(dir, "outside"),
    `${root}/../outside`,
    `${root}/vm/../../outside`,
    `${root}x/vm`,
    `${root}//vm`,
    "relative/vm",
    "/",
  ]) {
    await refuses(target, /below none of the staging roots/);
  }
  assert.deepEqual(readdirSync(join(dir, "outside")), []);
  await assert.rejects(new DirectoryStager([]).stage(join(root, "vm"), [], signal), /below none/);
  await assert.rejects(
    new DirectoryStager([join(dir, "absent")]).stage(join(dir, "absent", "vm"), [], signal),
    /does not exist/,
  );
});

test("a link or a file on the way is refused", async () => {
  symlinkSync(join(dir, "outside"), join(root, "link"));
  writeFileSync(join(root, "file"), "");
  await refuses(join(root, "link"), /no directory/);
  await refuses(join(root, "link", "deeper"), /no directory/);
  await refuses(join(root, "file"), /no directory/);
  await refuses(join(root, "file", "deeper"), /no directory/);
  assert.deepEqual(readdirSync(join(dir, "outside")), []);
});

test("a root may itself be reached through a link", async () => {
  symlinkSync(root, join(dir, "alias"));
  const methods = await new DirectoryStager([join(dir, "alias")]).stage(
    join(dir, "alias", "vm_1"),
    [{ blobPath, fileName: "rootfs" }],
    signal,
  );
  assert.deepEqual(methods, ["hard_link"]);
  assert.ok(existsSync(join(root, "vm_1", "rootfs")));
});

test("a missing blob fails as STAGING_FAILED and leaves no half file", async () => {
  const target = join(root, "vm_1");
  await assert.rejects(
    new DirectoryStager([root]).stage(target, [{ blobPath: join(dir, "gone"), fileName: "rootfs" }], signal),
    (error: unknown) => isServiceError(error, "STAGING_FAILED"),
  );
  assert.deepEqual(readdirSync(target), []);
});
