import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import * as fc from "fast-check";
import { digestOf } from "../digest.ts";
import { runTool } from "../run-tool.ts";
import { needsMount, seenIn, type TestLayer, withImage } from "../testing/built-image.ts";
import { anyLayers, archiveOf } from "../testing/random-layers.ts";
import { paxEntry, type TarFixture, tarOf } from "../testing/tar-fixture.ts";

const needsTools = ["mke2fs", "debugfs", "e2fsck"].every(
  (tool) => existsSync(`/usr/sbin/${tool}`) || existsSync(`/sbin/${tool}`),
)
  ? false
  : "e2fsprogs is not installed";
const needsBoth = needsTools !== false ? needsTools : needsMount("erofs") || needsMount("ext4");

/** Throws unless e2fsck finds nothing to repair. */
function checkExt4(imagePath: string): void {
  const { status, stdout, stderr } = spawnSync("e2fsck", ["-fn", imagePath], {
    encoding: "utf8",
    env: { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` },
  });
  if (status !== 0) throw new Error(`e2fsck ended with ${status}: ${stdout}${stderr}`);
}

/** Both formats of the same layers hold the same, as the kernel shows it. */
async function compare(layers: readonly TestLayer[]): Promise<void> {
  const erofs = await withImage(layers, {}, ({ imagePath }) => seenIn(imagePath));
  // Attaching layers means nothing to ext4: all is in the image.
  await withImage(layers, { format: "ext4", attach: () => true }, async ({ imagePath }) => {
    checkExt4(imagePath);
    assert.deepEqual(await seenIn(imagePath, { kind: "ext4" }), erofs);
  });
}

const capability = Buffer.from("0100000200000000000000000000000000000000", "hex");
const plenty: readonly (TarFixture | Buffer)[] = [
  { name: "./", type: "directory", mode: 0o751, uid: 3, gid: 4, mtimeNs: 1_600_000_000_000_000_001n },
  {
    name: "bin/tool",
    content: Buffer.alloc(70_000, "tool"),
    mode: 0o4755,
    uid: 100_000,
    gid: 70_000,
    xattrs: new Map([
      ["security.capability", capability],
      ['user.b"in', Buffer.from([0, 255, 61, 10])],
    ]),
  },
  { name: "bin/same", type: "hardlink", linkName: "bin/tool" },
  { name: "aa/earlier", type: "hardlink", linkName: "bin/tool" },
  { name: "unreadable", content: "secret", mode: 0 },
  { name: "closed/", type: "directory", mode: 0, mtimeNs: 1_500_000_000_123_456_789n },
  { name: "closed/in", content: "inside", mtimeNs: 4_000_000_000_999_999_999n },
  { name: "abs", type: "symlink", linkName: "/etc/passwd", mtimeNs: 1_400_000_000_000_000_001n, uid: 9 },
  { name: "bin/abs", type: "hardlink", linkName: "abs" },
  { name: "long-link", type: "symlink", linkName: "t".repeat(900) },
  { name: 'dev/nu "ll', type: "char", deviceMajor: 1, deviceMinor: 3, mode: 0o666 },
  { name: "dev/<12>", type: "block", deviceMajor: 259, deviceMinor: 70_000, mode: 0o600, uid: 6 },
  { name: "dev/pipe", type: "fifo", mode: 0o640 },
  { name: "dev/again", type: "hardlink", linkName: "dev/pipe" },
  { name: "gr\u00fc\u00dfe\n*", content: "names are bytes" },
  { name: "-rf", content: "not an option" },
  { name: "empty", content: "" },
  paxEntry([["SCHILY.acl.access", "user::rw-,user:joe:r--:7,group::r--,mask::r--,other::---"]], {
    name: "acl",
    content: "x",
    mode: 0o640,
  }),
  paxEntry(
    [
      ["GNU.sparse.size", "5000000"],
      ["GNU.sparse.map", "4096,3"],
    ],
    { name: "holes", content: "abc" },
  ),
  ...Array.from({ length: 300 }, (_, i) => ({ name: `many/${"name".repeat(20)}-${i}`, content: String(i) })),
];

test("an ext4 image holds what the EROFS image of the same layers holds", { skip: needsBoth }, () =>
  compare([{ archive: tarOf(plenty) }]),
);

test("a lost+found of the image's own is kept", { skip: needsBoth }, () =>
  compare([
    {
      archive: tarOf([
        { name: "lost+found", type: "directory", mode: 0o711, uid: 5 },
        { name: "lost+found/a", content: "x" },
        { name: "z", content: "y" },
      ]),
    },
  ]),
);

test("random layers give the same tree in both formats", { skip: needsBoth }, async () => {
  let compared = 0;
  await fc.assert(
    fc.asyncProperty(anyLayers, async (stack) => {
      const layers = stack.map((entries) => ({ archive: archiveOf(entries) }));
      const sound = await withImage(layers, {}, () => true).catch(() => false);
      if (!sound) return;
      compared++;
      await compare(layers);
    }),
    {
      numRuns: Number(process.env["UNKEY_TEST_RUNS"] ?? 15),
      ...(process.env["UNKEY_TEST_RUNS"] === undefined ? { seed: 2 } : {}),
    },
  );
  assert.ok(compared > 0);
});

test("the same layers give the same ext4 bytes", { skip: needsTools }, async () => {
  const digests = new Set<string>();
  for (let time = 0; time < 2; time++) {
    await withImage([{ archive: tarOf(plenty) }], { format: "ext4" }, async ({ imagePath }) => {
      digests.add(digestOf(await readFile(imagePath)));
    });
  }
  assert.equal(digests.size, 1);
});

test("what ext4's tools cannot be told is refused by name", { skip: needsTools }, async () => {
  for (const entry of [
    { name: "a\nb", type: "fifo" as const },
    { name: "lost+found", content: "x" },
  ]) {
    await assert.rejects(
      withImage([{ archive: tarOf([entry]) }], { format: "ext4" }, () => {}),
      (error) => isServiceError(error, "IMAGE_UNSUPPORTED"),
    );
  }
});

test("a missing tool is named with its package", async () => {
  const { signal } = new AbortController();
  await assert.rejects(
    runTool({ command: "no-such-tool", package: "some-package", args: [], signal }),
    (error) => isServiceError(error, "ROOTFS_TOOL_MISSING") && /install some-package/.test(error.message),
  );
});
