import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { needsMount, seenIn, withImage } from "../testing/built-image.ts";

/** A folder for GNU tar to archive, and the archive that it makes of it. */
function folder(context: TestContext): { path: string; archive: (...options: string[]) => Buffer } {
  const path = mkdtempSync(join(tmpdir(), "gnu-tar-"));
  context.after(() => rmSync(path, { recursive: true }));
  return {
    path,
    archive: (...options) => execFileSync("tar", ["-C", path, ...options, "-cf", "-", "."], { maxBuffer: 1 << 26 }),
  };
}

for (const options of [
  ["--format=gnu"],
  ["--format=pax", "--sparse-version=0.0"],
  ["--format=pax", "--sparse-version=0.1"],
  ["--format=pax", "--sparse-version=1.0"],
]) {
  test(`sparse files as GNU tar writes them: ${options.join(" ")}`, async (context) => {
    const { path, archive } = folder(context);
    const file = openSync(join(path, "sparse"), "w");
    for (let at = 0; at < 40; at++) writeSync(file, Buffer.alloc(4096, `range ${at} `), 0, 4096, at * 100_000 + 50_000);
    closeSync(file);
    truncateSync(join(path, "sparse"), 5_000_000);
    writeFileSync(join(path, "tail"), "behind it");
    const expected = execFileSync("cat", [join(path, "sparse")], { maxBuffer: 1 << 26 });
    const bytes = archive("--sparse", ...options);
    assert.ok(bytes.length < 1_000_000, "this file system keeps holes, or the test shows nothing");
    await withImage([{ archive: bytes }], { wanted: () => true }, ({ captured, sizeBytes }) => {
      assert.ok(captured.get("sparse")?.equals(expected));
      assert.equal(captured.get("tail")?.toString(), "behind it");
      assert.ok(sizeBytes < 1_000_000, "holes stay holes");
    });
  });
}

const probe = spawnSync("setfacl", ["-m", "u:7:r", "/dev/null", "--test"]);
const needsAcl = probe.error === undefined ? needsMount() : "acl is not installed";

test("access lists and attributes as GNU tar writes them", { skip: needsAcl }, async (context) => {
  const { path, archive } = folder(context);
  const plain = join(path, "plain");
  writeFileSync(plain, "x");
  chmodSync(plain, 0o640);
  execFileSync("setfacl", ["-m", "u:7:rw,g:70000:r", plain]);
  execFileSync("setfacl", ["-d", "-m", "u:12345:rwx", path]);
  execFileSync("setfattr", ["-n", "user.note", "-v", "0x00ff3d0a", plain]);
  const wanted = execFileSync("getfacl", ["-nEc", plain, path], { encoding: "utf8" });
  await withImage(
    [{ archive: archive("--acls", "--xattrs", "--numeric-owner", "--format=pax") }],
    {},
    async ({ imagePath }) => {
      const found = execFileSync(
        "unshare",
        ["--mount", "sh", "-c", 'mount -t erofs -o loop,ro "$0" /mnt && getfacl -nEc /mnt/plain /mnt/.', imagePath],
        { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] },
      );
      assert.equal(found, wanted);
      assert.equal((await seenIn(imagePath)).get("plain")?.entry.xattrs.get("user.note")?.toString("hex"), "00ff3d0a");
    },
  );
});
