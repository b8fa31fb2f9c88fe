import assert from "node:assert/strict";
import { test } from "node:test";
import { isServiceError } from "@unkey/base";
import { InvalidInput } from "../invalid-input.ts";
import { TarReader } from "../tar/tar-reader.ts";
import { type TarFixture, tarOf } from "../testing/tar-fixture.ts";
import { LayerMerger, type MergedTree } from "./layer-merger.ts";
import { defaultImageLimits, type ImageLimits } from "./limits.ts";
import { planTree } from "./tree-archive.ts";

async function merge(
  layers: readonly (readonly TarFixture[])[],
  limits: Partial<ImageLimits> = {},
): Promise<MergedTree> {
  const merger = new LayerMerger({ ...defaultImageLimits, ...limits });
  for (const layer of layers) {
    merger.nextLayer();
    const reader = new TarReader(
      (async function* () {
        yield tarOf(layer);
      })(),
    );
    for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) merger.add(entry);
  }
  return merger.finish();
}

/** Every path of the tree but the root with what it is; files by the layer and ordinal that their content comes from. */
function listing(tree: MergedTree): Record<string, string> {
  const plan = planTree(tree, 8, defaultImageLimits);
  const found: Record<string, string> = {};
  for (const { path, node } of plan.directories) if (path !== "") found[path] = `dir ${node.metadata.mode.toString(8)}`;
  for (const files of plan.files) {
    for (const { path, node } of files.values()) found[path] = `file ${node.layer}.${node.ordinal}`;
  }
  for (const { path, node } of plan.specials) {
    found[path] =
      node.kind === "symlink" ? `-> ${node.target}` : `${node.kind} ${node.deviceMajor}:${node.deviceMinor}`;
  }
  for (const { path, first } of plan.hardLinks) found[path] = `= ${first}`;
  return Object.fromEntries(Object.entries(found).sort(([a], [b]) => (a < b ? -1 : 1)));
}

const dir = (name: string, mode = 0o755): TarFixture => ({ name, type: "directory", mode });
const file = (name: string, content = "x"): TarFixture => ({ name, content });
const symlink = (name: string, linkName: string): TarFixture => ({ name, linkName, type: "symlink" });
const hardlink = (name: string, linkName: string): TarFixture => ({ name, linkName, type: "hardlink" });

const merges: [string, (readonly TarFixture[])[], Record<string, string>][] = [
  ["an empty image has an empty root", [], {}],
  ["missing parents are made", [[file("a/b/c")]], { a: "dir 755", "a/b": "dir 755", "a/b/c": "file 0.0" }],
  [
    "a leading slash or dot names the same path",
    [[file("/a"), file("./b"), file("./c/./d//e")]],
    { a: "file 0.0", b: "file 0.1", c: "dir 755", "c/d": "dir 755", "c/d/e": "file 0.2" },
  ],
  ["a later file replaces an earlier one", [[file("a")], [file("a")]], { a: "file 1.0" }],
  ["a duplicate in one layer: the last wins", [[file("a"), file("a")]], { a: "file 0.1" }],
  [
    "two directories become one with the later mode",
    [
      [dir("d", 0o700), file("d/a")],
      [dir("d", 0o750), file("d/b")],
    ],
    { d: "dir 750", "d/a": "file 0.1", "d/b": "file 1.1" },
  ],
  ["a file replaces a directory and all below", [[file("d/a")], [file("d")]], { d: "file 1.0" }],
  ["a directory replaces a file", [[file("d")], [dir("d")]], { d: "dir 755" }],
  [
    "a directory entry replaces a link to a directory",
    [
      [dir("t"), symlink("l", "t")],
      [dir("l"), file("l/a")],
    ],
    { l: "dir 755", "l/a": "file 1.1", t: "dir 755" },
  ],
  ["a whiteout removes a file", [[file("d/a"), file("d/b")], [file("d/.wh.a")]], { d: "dir 755", "d/b": "file 0.1" }],
  ["a whiteout removes a directory and all below", [[file("d/e/f")], [file(".wh.d")]], {}],
  [
    "a whiteout of what is not there changes nothing",
    [[file("a")], [file(".wh.b"), file("no/where/.wh.c")]],
    { a: "file 0.0" },
  ],
  [
    "a whiteout below a file hides nothing",
    [[file("a")], [file("a/.wh.b"), file("a/.wh..wh..opq")]],
    { a: "file 0.0" },
  ],
  [
    "a whiteout leaves a name of its own layer, written before",
    [[file("a")], [file("a"), file(".wh.a")]],
    { a: "file 1.0" },
  ],
  [
    "a whiteout leaves a name of its own layer, written after",
    [[file("a")], [file(".wh.a"), file("a")]],
    { a: "file 1.1" },
  ],
  [
    "a whiteout of a directory that its layer writes anew",
    [[file("d/old")], [dir("d", 0o700), file("d/new"), file(".wh.d")]],
    { d: "dir 700", "d/new": "file 1.1" },
  ],
  [
    "an opaque directory loses older names only",
    [
      [file("d/a"), file("d/e/b")],
      [file("d/e/c"), file("d/.wh..wh..opq")],
    ],
    { d: "dir 755", "d/e": "dir 755", "d/e/c": "file 1.0" },
  ],
  [
    "an opaque mark before its siblings",
    [[file("d/a")], [file("d/.wh..wh..opq"), file("d/b")]],
    { d: "dir 755", "d/b": "file 1.1" },
  ],
  [
    "an opaque root",
    [
      [file("a"), file("d/b")],
      [file(".wh..wh..opq"), file("c")],
    ],
    { c: "file 1.1" },
  ],
  [
    "a whiteout through a link of a lower layer",
    [[file("usr/lib/a"), symlink("lib", "usr/lib")], [file("lib/.wh.a")]],
    { lib: "-> usr/lib", usr: "dir 755", "usr/lib": "dir 755" },
  ],
  ["AUFS bookkeeping is passed over", [[file("a"), file(".wh..wh.plnk"), file(".wh..wh.aufs")]], { a: "file 0.0" }],
  [
    "a path through a link lands where the link points inside the tree",
    [[dir("usr/lib"), symlink("lib", "usr/lib")], [file("lib/a")]],
    { lib: "-> usr/lib", usr: "dir 755", "usr/lib": "dir 755", "usr/lib/a": "file 1.0" },
  ],
  [
    "a hard link shares its file",
    [[file("a"), hardlink("b", "a"), hardlink("d/c", "/a")]],
    { a: "file 0.0", b: "= a", d: "dir 755", "d/c": "= a" },
  ],
  ["a hard link to a file of a lower layer", [[file("a")], [hardlink("b", "a")]], { a: "file 0.0", b: "= a" }],
  [
    "a hard link outlives the name it was made from",
    [[file("a"), hardlink("b", "a")], [file(".wh.a")]],
    { b: "file 0.0" },
  ],
  [
    "replacing one name of a hard link leaves the other",
    [[file("a"), hardlink("b", "a")], [file("a")]],
    { a: "file 1.0", b: "file 0.0" },
  ],
  [
    "a hard link to a symbolic link is the link itself",
    [[symlink("a", "/etc"), hardlink("b", "a")]],
    { a: "-> /etc", b: "= a" },
  ],
  [
    "devices and pipes",
    [
      [
        { name: "n", type: "char", deviceMajor: 1, deviceMinor: 3 },
        { name: "b", type: "block", deviceMajor: 7, deviceMinor: 300 },
        { name: "p", type: "fifo" },
      ],
    ],
    { b: "block 7:300", n: "char 1:3", p: "fifo 0:0" },
  ],
];

for (const [name, layers, expected] of merges) {
  test(name, async () => {
    assert.deepEqual(listing(await merge(layers)), expected);
  });
}

const deep = (count: number): string => Array.from({ length: count }, (_, i) => `d${i}`).join("/");

// Links that point out of the tree are harmless as links: what matters is where names behind them land.
const contained: [string, (readonly TarFixture[])[], Record<string, string>][] = [
  ["an absolute link stays a link", [[symlink("l", "/etc/passwd")]], { l: "-> /etc/passwd" }],
  [
    "a name behind an absolute link lands inside the tree",
    [[symlink("l", "/etc"), file("l/passwd")]],
    { etc: "dir 755", "etc/passwd": "file 0.1", l: "-> /etc" },
  ],
  [
    "a name behind a climbing link stops at the root",
    [[symlink("l", "../../../../tmp"), file("l/x")]],
    { l: "-> ../../../../tmp", tmp: "dir 755", "tmp/x": "file 0.1" },
  ],
  [
    "a name behind a chain of links",
    [[symlink("a", "b"), symlink("b", "/c/.."), file("a/x")]],
    { a: "-> b", b: "-> /c/..", c: "dir 755", x: "file 0.2" },
  ],
  [
    "a file entry replaces a link instead of writing through it",
    [[symlink("l", "/etc/passwd")], [file("l")]],
    { l: "file 1.0" },
  ],
  [
    "names with newlines, quotes and control characters are names",
    [[file('a\n"\u0001'), file("-rf"), file("*")]],
    { "*": "file 0.2", "-rf": "file 0.1", 'a\n"\u0001': "file 0.0" },
  ],
  ["a name that ends in a whiteout's letters is a name", [[file("a.wh.b")]], { "a.wh.b": "file 0.0" }],
];
for (const [name, layers, expected] of contained) {
  test(`hostile: ${name}`, async () => {
    assert.deepEqual(listing(await merge(layers)), expected);
  });
}

const refused: [string, (readonly TarFixture[])[], RegExp][] = [
  ["a path that climbs out", [[file("../etc/passwd")]], /out of the tree/],
  ["a path that climbs inside", [[file("a/../../b")]], /out of the tree/],
  ["a hard link out of the tree", [[hardlink("l", "../../etc/shadow")]], /out of the tree/],
  ["a hard link to a host file", [[hardlink("l", "/etc/shadow")]], /not there/],
  ["a hard link to a whiteout's victim", [[file("a")], [file(".wh.a"), hardlink("b", "a")]], /not there/],
  ["a hard link to itself", [[file("a"), hardlink("a", "a")]], /itself/],
  ["a hard link into the directory that it replaces", [[file("d/f"), hardlink("d", "d/f")]], /replaces the directory/],
  ["a hard link to a directory", [[dir("d"), hardlink("l", "d")]], /directory/],
  ["a hard link to the root", [[hardlink("l", "/")]], /not there/],
  ["a name below a file", [[file("a"), file("a/b")]], /not a directory/],
  [
    "a name below a device",
    [[{ name: "n", type: "char", deviceMajor: 1, deviceMinor: 3 }, file("n/x")]],
    /not a directory/,
  ],
  ["links in a circle", [[symlink("a", "b"), symlink("b", "a"), file("a/x")]], /too many/],
  ["a link to itself as a parent", [[symlink("a", "a"), file("a/x")]], /too many/],
  [
    "a chain of long links that multiplies the walk",
    [
      [
        ...Array.from({ length: 30 }, (_, i) => symlink(`l${i}`, `${"x/../".repeat(60)}l${i + 1}`)),
        dir("x"),
        file("l0/f"),
      ],
    ],
    /too many/,
  ],
  ["a whiteout of the parent", [[file("d/.wh...")]], /names no entry/],
  ["a whiteout of the directory itself", [[file("d/.wh..")]], /names no entry/],
  ["a whiteout of nothing", [[file("d/.wh.")]], /names no entry/],
  ["a name below a whiteout", [[file("d/.wh.a/b")]], /below a whiteout/],
  ["a name of 256 bytes", [[file("n".repeat(256))]], /255 bytes/],
  ["a symbolic link without a target", [[symlink("l", "")]], /no target/],
  ["a symbolic link with an endless target", [[symlink("l", "t".repeat(4096))]], /4095/],
  ["a device number out of range", [[{ name: "n", type: "char", deviceMajor: 5000, deviceMinor: 0 }]], /out of range/],
  [
    "a file in the place of the root",
    [[file("./")]].map((layer) => layer.map((entry) => ({ ...entry, name: "." }))),
    /root/,
  ],
  [
    "a malformed file capability",
    [[{ ...file("a"), xattrs: new Map([["security.capability", Buffer.from("junk")]]) }]],
    /capability/,
  ],
];
for (const [name, layers, why] of refused) {
  test(`hostile: ${name} is refused`, async () => {
    await assert.rejects(merge(layers), (error) => error instanceof InvalidInput && why.test(error.message));
  });
}

const overLimit: [string, (readonly TarFixture[])[], Partial<ImageLimits>][] = [
  ["too many entries", [[file("a"), file("b"), file("c")]], { entries: 2 }],
  ["too many entries by directories that one path implies", [[file(deep(50))]], { entries: 20 }],
  ["a path too deep", [[file(deep(200))]], {}],
  ["a path too deep by way of a link", [[dir(deep(100)), symlink("l", deep(100)), file(`l/${deep(100)}`)]], {}],
  ["a path too long", [[file(`${"n".repeat(200)}/`.repeat(16) + "x")]], {}],
  ["a file too large", [[file("a", "x".repeat(100))]], { fileBytes: 99 }],
  [
    "too many bytes of names",
    [Array.from({ length: 50 }, (_, i) => file(`${i}${"n".repeat(100)}`))],
    { metadataBytes: 4096 },
  ],
  ["too many bytes of attributes", [[{ ...file("a"), xattrs: new Map([["user.a", Buffer.alloc(4000)]]) }]], {}],
];
for (const [name, layers, limits] of overLimit) {
  test(`hostile: ${name} is refused`, async () => {
    await assert.rejects(merge(layers, limits), (error) => isServiceError(error, "IMAGE_TOO_LARGE"));
  });
}

test("a path too long by way of a link is refused when the tree is laid out", async () => {
  const long = `${"n".repeat(200)}/`.repeat(10);
  const tree = await merge([[dir(long), symlink("l", long), file(`l/${long}x`)]]);
  assert.throws(
    () => planTree(tree, 1, defaultImageLimits),
    (error) => isServiceError(error, "IMAGE_TOO_LARGE"),
  );
});

test("keeps user attributes and file capabilities, drops what belongs to the packing machine", async () => {
  const capability = Buffer.alloc(20);
  capability.writeUInt32LE(0x02000001, 0);
  const tree = await merge([
    [
      {
        ...file("a"),
        xattrs: new Map([
          ["user.\xff", Buffer.from([0, 255])],
          ["security.capability", capability],
          ["security.selinux", Buffer.from("x")],
          ["trusted.overlay.opaque", Buffer.from("y")],
        ]),
      },
      { ...symlink("l", "a"), xattrs: new Map([["user.b", Buffer.from("z")]]) },
    ],
  ]);
  const node = tree.root.children.get("a")?.node;
  assert.deepEqual([...(node?.metadata.xattrs.keys() ?? [])], ["security.capability", "user.\xff"].sort());
  assert.deepEqual(tree.droppedXattrs, ["security.selinux", "trusted.overlay.opaque", "user.b"]);
});

test("times outside what file systems hold are clamped", async () => {
  const tree = await merge([
    [
      { ...file("a"), mtimeNs: -5n },
      { ...file("b"), mtimeNs: 10n ** 20n },
    ],
  ]);
  assert.equal(tree.root.children.get("a")?.node.metadata.mtimeNs, 0n);
  assert.equal(tree.root.children.get("b")?.node.metadata.mtimeNs, (2n ** 32n - 1n) * 10n ** 9n);
});

test("repeated opaque marks cost one pass, not one each", async () => {
  const names = Array.from({ length: 3000 }, (_, i) => file(`d/${i}`));
  const marks = Array.from({ length: 3000 }, () => file("d/.wh..wh..opq"));
  const tree = await merge([names, [...Array.from({ length: 3000 }, (_, i) => file(`d/n${i}`)), ...marks]]);
  assert.equal(Object.keys(listing(tree)).length, 3001);
});
