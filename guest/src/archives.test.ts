import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileType, writeCpio } from "./cpio.ts";
import { writeInitramfs } from "./initramfs.ts";
import { loadOrder } from "./kernel-modules.ts";
import { writeTar } from "./tar.ts";

const busybox = ["/usr/bin/busybox", "/bin/busybox"].find((path) => existsSync(path));
const skip = busybox === undefined ? { skip: "needs busybox" } : {};

/** Unpacks `archive` with busybox, as a guest would, and lends the folder. */
function unpacked(args: readonly string[], archive: Uint8Array, use: (dir: string) => void): void {
  const dir = mkdtempSync(join(tmpdir(), "archive-"));
  try {
    execFileSync(busybox ?? "busybox", args, { cwd: dir, input: archive, stdio: ["pipe", "ignore", "pipe"] });
    use(dir);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

test("a cpio archive unpacks to the same files, modes and links", skip, () => {
  const contents = ["", "a", "ab", "abc", "abcd"];
  const archive = writeCpio([
    { path: "d", mode: fileType.directory | 0o755 },
    ...contents.map((content, index) => ({
      path: `d/${"n".repeat(index + 1)}`,
      mode: fileType.file | 0o640,
      content: Buffer.from(content),
    })),
    { path: "link", mode: fileType.symlink | 0o777, content: Buffer.from("d/nn") },
  ]);
  unpacked(["cpio", "-id"], archive, (dir) => {
    for (const [index, content] of contents.entries()) {
      const path = join(dir, "d", "n".repeat(index + 1));
      assert.equal(readFileSync(path, "utf8"), content);
      assert.equal(statSync(path).mode & 0o777, 0o640);
    }
    assert.equal(readFileSync(join(dir, "link"), "utf8"), "a");
  });
});

test("an initramfs is the same bytes for the same parts, and other bytes for others", () => {
  const parts = { busybox: Buffer.from("busybox"), modules: new Map([["virtio", Buffer.from("module")]]) };
  const first = writeInitramfs(parts);
  assert.deepEqual(writeInitramfs(parts), first);
  assert.notDeepEqual(writeInitramfs({ ...parts, busybox: Buffer.from("other") }), first);
  for (const name of [
    "init",
    "supervise",
    "launch",
    "bin/busybox",
    "modules/order",
    "modules/virtio.ko",
    "dev/console",
  ]) {
    assert.ok(first.includes(`${name}\0`), name);
  }
});

test("a tar archive unpacks to the same private files", skip, () => {
  const files = new Map([
    ["empty", Buffer.alloc(0)],
    ["block", Buffer.alloc(512, 7)],
    ["odd", Buffer.alloc(513, 255)],
  ]);
  unpacked(["tar", "-x"], writeTar(files), (dir) => {
    for (const [name, content] of files) {
      assert.deepEqual(readFileSync(join(dir, name)), content);
      assert.equal(statSync(join(dir, name)).mode & 0o777, 0o600);
    }
  });
});

test("modules come after all that they depend on, built-in drivers are left out", () => {
  const modules: Readonly<Record<string, string>> = { a: "b,c-d", b: "c_d,built_in", c_d: "", unused: "" };
  const read = (name: string): Uint8Array | undefined => {
    const depends = modules[name];
    return depends === undefined ? undefined : Buffer.from(`\x7fELF\0license=GPL\0depends=${depends}\0name=${name}\0`);
  };
  assert.deepEqual([...loadOrder(["a", "built_in", "b"], read).keys()], ["c_d", "b", "a"]);
});
