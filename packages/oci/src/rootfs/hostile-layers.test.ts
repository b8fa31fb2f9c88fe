import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { type ErrorReason, isServiceError } from "@unkey/base";
import { fromUtf8 } from "../byte-string.ts";
import type { ImageLimits } from "../layer/limits.ts";
import {
  checkErofs,
  needsErofsUtils,
  needsMount,
  type Seen,
  seenIn,
  type TestLayer,
  withImage,
} from "../testing/built-image.ts";
import { paxEntry, paxHeader, type TarFixture, tarEntry, tarOf } from "../testing/tar-fixture.ts";
import type { TreePolicy } from "./tree-policy.ts";

/*
 * What becomes of layers, from plain to hostile: each case goes through unpackLayer and RootfsAssembly, and either the image
 * holds exactly `gives`, as the kernel shows it, or the build is `refused` for that reason. Paths below a directory that no
 * case describes appear as what was implied.
 */

type Entries = readonly (TarFixture | Buffer)[];
interface Expected {
  readonly gives?: Readonly<Record<string, string>>;
  readonly refused?: readonly [ErrorReason, RegExp];
  readonly limits?: Partial<ImageLimits>;
  readonly policy?: TreePolicy;
  /** Attributes that the build reports as left out. */
  readonly drops?: readonly string[];
}
type Case = Expected & { readonly layers: readonly (Entries | TestLayer)[] };

const dir = (name: string, mode = 0o755): TarFixture => ({ name, type: "directory", mode });
const file = (name: string, content: string | Buffer = "x", more: Partial<TarFixture> = {}): TarFixture => ({
  ...more,
  name,
  content,
});
const symlink = (name: string, linkName: string): TarFixture => ({ name, linkName, type: "symlink" });
const hardlink = (name: string, linkName: string): TarFixture => ({ name, linkName, type: "hardlink" });
const device = (name: string, deviceMajor = 1, deviceMinor = 3): TarFixture => ({
  name,
  type: "char",
  deviceMajor,
  deviceMinor,
});
const withXattr = (name: string, key: string, value: string | Buffer): TarFixture =>
  file(name, "x", { xattrs: new Map([[key, Buffer.from(value)]]) });
const deep = (count: number): string => Array.from({ length: count }, (_, i) => `d${i}`).join("/");
const many = <T>(count: number, make: (i: number) => T): T[] => Array.from({ length: count }, (_, i) => make(i));
const invalid = (why: RegExp): Pick<Expected, "refused"> => ({ refused: ["IMAGE_LAYER_INVALID", why] });
const tooLarge = (why: RegExp): Pick<Expected, "refused"> => ({ refused: ["IMAGE_TOO_LARGE", why] });

const capability = Buffer.from("0100000200000000000000000000000000000000", "hex");
/** user::rw-, user:7:r--, group::r--, mask::r--, other::--- as the kernel stores it. */
const acl = "0200000001000600ffffffff020004000700000004000400ffffffff10000400ffffffff20000000ffffffff";

const paths: Record<string, Case> = {
  "missing parents are made": { layers: [[file("a/b/c")]], gives: { a: "dir", "a/b": "dir", "a/b/c": '"x"' } },
  "a leading slash, a dot and doubled slashes name the same path": {
    layers: [[file("/a", "1"), file("./b", "2"), file("./c/./d//e", "3")]],
    gives: { a: '"1"', b: '"2"', c: "dir", "c/d": "dir", "c/d/e": '"3"' },
  },
  "a path that climbs out": {
    layers: [[file("../etc/passwd")]],
    ...invalid(/"..\/etc\/passwd" points out of the tree/),
  },
  "a path that climbs inside": { layers: [[file("a/../../b")]], ...invalid(/out of the tree/) },
  "a path that climbs and comes back": { layers: [[dir("a"), file("a/../b")]], ...invalid(/out of the tree/) },
  "an absolute link stays a link": { layers: [[symlink("l", "/etc/passwd")]], gives: { l: "-> /etc/passwd" } },
  "a dangling link stays a link": { layers: [[symlink("l", "no/where")]], gives: { l: "-> no/where" } },
  "a name behind an absolute link lands inside the tree": {
    layers: [[symlink("l", "/etc"), file("l/passwd", "inside")]],
    gives: { etc: "dir", "etc/passwd": '"inside"', l: "-> /etc" },
  },
  "a name behind a climbing link stops at the root": {
    layers: [[symlink("l", "../../../../tmp"), file("l/x", "inside")]],
    gives: { l: "-> ../../../../tmp", tmp: "dir", "tmp/x": '"inside"' },
  },
  "a name behind a chain of links": {
    layers: [[symlink("a", "b"), symlink("b", "/c/.."), file("a/x")]],
    gives: { a: "-> b", b: "-> /c/..", c: "dir", x: '"x"' },
  },
  "a name after its directory became a link": {
    layers: [[dir("b"), dir("d/"), file("d/x"), symlink("d", "b"), file("d/y")]],
    gives: { b: "dir", "b/y": '"x"', d: "-> b" },
  },
  "a name after the link to its directory leads elsewhere": {
    layers: [[dir("a"), dir("b"), symlink("l", "a"), file("l/x"), symlink("l", "b"), file("l/y")]],
    gives: { a: "dir", "a/x": '"x"', b: "dir", "b/y": '"x"', l: "-> b" },
  },
  "a name after its directory became a file": {
    layers: [[dir("d/"), file("d/x"), file("d"), file("d/y")]],
    ...invalid(/goes through "d", which is not a directory/),
  },
  "names in and out of directories in turn": {
    layers: [[dir("./d/"), file("./d/x"), dir("./d/s/"), file("./d/s/y"), file("./d/z"), file("./dx"), file("./d/.h")]],
    gives: { d: "dir", "d/.h": '"x"', "d/s": "dir", "d/s/y": '"x"', "d/x": '"x"', "d/z": '"x"', dx: '"x"' },
  },
  "a name after its directory was emptied": {
    layers: [[file("d/x")], [file("d/n"), file(".wh.d"), file("d/m")]],
    gives: { d: "dir", "d/m": '"x"', "d/n": '"x"' },
  },
  "a name behind a link of a lower layer": {
    layers: [[dir("usr/lib"), symlink("lib", "usr/lib")], [file("lib/a")]],
    gives: { lib: "-> usr/lib", usr: "dir", "usr/lib": "dir", "usr/lib/a": '"x"' },
  },
  "a file replaces a link instead of writing through it": {
    layers: [[file("t", "safe"), symlink("l", "t")], [file("l", "new")]],
    gives: { l: '"new"', t: '"safe"' },
  },
  "a directory replaces a link to a directory": {
    layers: [
      [dir("t"), symlink("l", "t")],
      [dir("l"), file("l/a")],
    ],
    gives: { l: "dir", "l/a": '"x"', t: "dir" },
  },
  "links in a circle as a parent": {
    layers: [[symlink("a", "b"), symlink("b", "a"), file("a/x")]],
    ...invalid(/too many/),
  },
  "a link to itself as a parent": { layers: [[symlink("a", "a"), file("a/x")]], ...invalid(/too many symbolic links/) },
  "a link to itself is a link": { layers: [[symlink("a", "a")]], gives: { a: "-> a" } },
  "a chain of long links that multiplies the walk": {
    layers: [[...many(30, (i) => symlink(`l${i}`, `${"x/../".repeat(60)}l${i + 1}`)), dir("x"), file("l0/f")]],
    ...invalid(/too many symbolic links/),
  },
  "a link without a target": { layers: [[symlink("l", "")]], ...invalid(/no target/) },
  "a link with an endless target": { layers: [[symlink("l", "t".repeat(4096))]], ...invalid(/over 4095 bytes/) },
  "a name below a file": { layers: [[file("a"), file("a/b")]], ...invalid(/"a", which is not a directory/) },
  "a name below a file of a lower layer": { layers: [[file("a")], [file("a/b")]], ...invalid(/not a directory/) },
  "a name below a device": { layers: [[device("n"), file("n/x")]], ...invalid(/not a directory/) },
};

const names: Record<string, Case> = {
  "newlines, quotes, control characters, dashes and stars": {
    layers: [[file('a\n"\u0001', "1"), file("-rf", "2"), file("*", "3"), file("a b\\", "4")]],
    gives: { "*": '"3"', "-rf": '"2"', 'a\n"\u0001': '"1"', "a b\\": '"4"' },
  },
  "UTF-8": { layers: [[file("grüße", "1")]], gives: { [fromUtf8("grüße")]: '"1"' } },
  "bytes that are no UTF-8": {
    layers: [[tarEntry(file("@"), (header) => header.writeUInt8(0xff, 0))]],
    gives: { "\xff": '"x"' },
  },
  "three dots are a name": { layers: [[file(".../a")]], gives: { "...": "dir", ".../a": '"x"' } },
  "255 bytes": { layers: [[file("n".repeat(255))]], gives: { ["n".repeat(255)]: '"x"' } },
  "256 bytes": { layers: [[file("n".repeat(256))]], ...invalid(/over 255 bytes/) },
  "256 bytes in a parent": { layers: [[file(`${"n".repeat(256)}/a`)]], ...invalid(/over 255 bytes/) },
  "a NUL in a PAX path": { layers: [[paxEntry([["path", "a\0b"]], file("c"))]], ...invalid(/NUL/) },
  "a NUL in a PAX link target": { layers: [[paxEntry([["linkpath", "a\0b"]], symlink("c", "d"))]], ...invalid(/NUL/) },
  "a NUL ends a name in the header": {
    layers: [[tarEntry(file("ab"), (header) => header.write("\0", 1))]],
    gives: { a: '"x"' },
  },
  "a file in the place of the root": {
    layers: [[file("./")].map((f) => ({ ...f, name: "." }))],
    ...invalid(/the root/),
  },
  "an empty name": { layers: [[file("")]], ...invalid(/the root of the tree is not a directory/) },
  "a link in the place of the root": { layers: [[symlink(".", "/")]], ...invalid(/the root/) },
};

const conflicts: Record<string, Case> = {
  "a later file replaces an earlier one": { layers: [[file("a", "old")], [file("a", "new")]], gives: { a: '"new"' } },
  "the last of duplicates wins": {
    layers: [[file("a", "1"), file("a", "22"), file("b")]],
    gives: { a: '"22"', b: '"x"' },
  },
  "two directories become one with the later mode": {
    layers: [
      [dir("d", 0o700), file("d/a")],
      [dir("d", 0o750), file("d/b")],
    ],
    gives: { d: "dir 750", "d/a": '"x"', "d/b": '"x"' },
  },
  "a file replaces a directory and all below": { layers: [[file("d/a")], [file("d", "new")]], gives: { d: '"new"' } },
  "a file replaces a directory of its own layer": { layers: [[file("d/a"), file("d", "new")]], gives: { d: '"new"' } },
  "a directory replaces a file": { layers: [[file("d")], [dir("d")]], gives: { d: "dir" } },
  "a device replaces a directory": { layers: [[file("d/a")], [device("d")]], gives: { d: "char 1:3" } },
  "a link replaces a directory; names behind it land in its target": {
    layers: [[file("d/a")], [symlink("d", "e"), file("d/b")]],
    gives: { d: "-> e", e: "dir", "e/b": '"x"' },
  },
};

const hardLinks: Record<string, Case> = {
  "share their file": {
    layers: [[file("a"), hardlink("b", "a"), hardlink("d/c", "/a")]],
    gives: { a: '"x"', b: "= a", d: "dir", "d/c": "= a" },
  },
  "reach a file of a lower layer": { layers: [[file("a")], [hardlink("b", "a")]], gives: { a: '"x"', b: "= a" } },
  "reach through links": {
    layers: [[file("usr/a"), symlink("l", "usr"), symlink("m", "l"), hardlink("b", "m/a")]],
    gives: { b: '"x"', l: "-> usr", m: "-> l", usr: "dir", "usr/a": "= b" },
  },
  "outlive the name they were made from": {
    layers: [[file("a"), hardlink("b", "a")], [file(".wh.a")]],
    gives: { b: '"x"' },
  },
  "keep the old content when another name is replaced": {
    layers: [[file("a", "old"), hardlink("b", "a")], [file("a", "new")]],
    gives: { a: '"new"', b: '"old"' },
  },
  "to a symbolic link are that link": {
    layers: [[symlink("a", "/etc"), hardlink("b", "a")]],
    gives: { a: "-> /etc", b: "= a" },
  },
  "out of the tree": { layers: [[hardlink("l", "../../etc/shadow")]], ...invalid(/points out of the tree/) },
  "to a file of the host": {
    layers: [[hardlink("l", "/etc/shadow")]],
    ...invalid(/"\/etc\/shadow", which is not there/),
  },
  "to a host file behind a link": {
    layers: [[symlink("e", "/etc"), hardlink("l", "e/shadow")]],
    ...invalid(/which is not there/),
  },
  "to a name that comes later": { layers: [[hardlink("b", "a"), file("a")]], ...invalid(/not there/) },
  "to what a whiteout took": { layers: [[file("a")], [file(".wh.a"), hardlink("b", "a")]], ...invalid(/not there/) },
  "to a whiteout": { layers: [[file(".wh.a"), hardlink("b", ".wh.a")]], ...invalid(/not there/) },
  "to itself": { layers: [[file("a"), hardlink("a", "a")]], ...invalid(/points to itself/) },
  "into the directory that it replaces": {
    layers: [[file("d/f"), hardlink("d", "d/f")]],
    ...invalid(/replaces the directory that it points into/),
  },
  "to a directory": { layers: [[dir("d"), hardlink("l", "d")]], ...invalid(/points to a directory/) },
  "to the root": { layers: [[hardlink("l", "/")]], ...invalid(/not there/) },
};

const whiteouts: Record<string, Case> = {
  "remove a file": { layers: [[file("d/a"), file("d/b")], [file("d/.wh.a")]], gives: { d: "dir", "d/b": '"x"' } },
  "remove a directory and all below": { layers: [[file("d/e/f"), file("g")], [file(".wh.d")]], gives: { g: '"x"' } },
  "of what is not there change nothing": {
    layers: [[file("a")], [file(".wh.b"), file("no/where/.wh.c")]],
    gives: { a: '"x"' },
  },
  "below a file hide nothing": {
    layers: [[file("a")], [file("a/.wh.b"), file("a/.wh..wh..opq")]],
    gives: { a: '"x"' },
  },
  "leave a name of their own layer, written before": {
    layers: [[file("a", "old")], [file("a", "new"), file(".wh.a")]],
    gives: { a: '"new"' },
  },
  "leave a name of their own layer, written after": {
    layers: [[file("a", "old")], [file(".wh.a"), file("a", "new")]],
    gives: { a: '"new"' },
  },
  "of a directory that their layer writes anew": {
    layers: [[file("d/old")], [dir("d", 0o700), file("d/new"), file(".wh.d")]],
    gives: { d: "dir 700", "d/new": '"x"' },
  },
  "opaque: only older names go": {
    layers: [
      [file("d/a"), file("d/e/b")],
      [file("d/e/c"), file("d/.wh..wh..opq")],
    ],
    gives: { d: "dir", "d/e": "dir", "d/e/c": '"x"' },
  },
  "opaque before its siblings": {
    layers: [[file("d/a")], [file("d/.wh..wh..opq"), file("d/b")]],
    gives: { d: "dir", "d/b": '"x"' },
  },
  "opaque root": {
    layers: [
      [file("a"), file("d/b")],
      [file(".wh..wh..opq"), file("c")],
    ],
    gives: { c: '"x"' },
  },
  "through a link of a lower layer": {
    layers: [[file("usr/lib/a"), symlink("lib", "usr/lib")], [file("lib/.wh.a")]],
    gives: { lib: "-> usr/lib", usr: "dir", "usr/lib": "dir" },
  },
  "of another kind than a file": { layers: [[file("a")], [symlink(".wh.a", "/etc")]], gives: {} },
  "AUFS bookkeeping is passed over": {
    layers: [[file("a"), file(".wh..wh.plnk"), file(".wh..wh.aufs")]],
    gives: { a: '"x"' },
  },
  "their letters inside a name are a name": { layers: [[file("a.wh.b")]], gives: { "a.wh.b": '"x"' } },
  "of the parent": { layers: [[file("d/.wh...")]], ...invalid(/names no entry of its directory/) },
  "of the directory itself": { layers: [[file("d/.wh..")]], ...invalid(/names no entry/) },
  "of nothing": { layers: [[file("d/.wh.")]], ...invalid(/names no entry/) },
  "as a parent": { layers: [[file("d/.wh.a/b")]], ...invalid(/below a whiteout/) },
  "repeated without end cost one pass": {
    layers: [
      [file("d/old")],
      [...many(500, (i) => file(`d/n${i}`)), ...many(500, () => file("d/.wh..wh..opq")), file(".wh.d")],
    ],
    gives: Object.fromEntries([["d", "dir"], ...many(500, (i) => [`d/n${i}`, '"x"'])]),
  },
};

const devices: Record<string, Case> = {
  "and pipes are kept": {
    layers: [[device("n", 0xfff, 0xfffff), { ...device("b", 259, 300), type: "block" }, { name: "p", type: "fifo" }]],
    gives: { b: "block 259:300", n: "char 4095:1048575", p: "fifo" },
  },
  "a major number out of range": { layers: [[device("n", 5000, 0)]], ...invalid(/number out of range/) },
  "a minor number out of range": { layers: [[device("n", 0, 0x100000)]], ...invalid(/number out of range/) },
  "a negative number": {
    layers: [[tarEntry(device("n"), (header) => header.fill(0xff, 329, 337))]],
    ...invalid(/number out of range/),
  },
};

const privileges: Record<string, Case> = {
  "setuid, setgid and capabilities are kept by a policy that keeps": {
    layers: [
      [
        file("u", "x", { mode: 0o4755 }),
        file("g", "x", { mode: 0o2755 }),
        withXattr("c", "security.capability", capability),
      ],
    ],
    gives: {
      c: `"x" security.capability=${capability.toString("hex")}`,
      g: '2755 "x"',
      u: '4755 "x"',
    },
  },
  "they are taken off files by one that strips; directories and other attributes stay": {
    policy: { setuid: "strip" },
    layers: [
      [
        dir("d", 0o2775),
        file("u", "x", { mode: 0o6755 }),
        hardlink("v", "u"),
        file("c", "x", {
          xattrs: new Map([
            ["security.capability", capability],
            ["user.a", Buffer.from("1")],
          ]),
        }),
      ],
    ],
    gives: { c: '"x" user.a=31', d: "dir 2775", u: '755 "x"', v: "= u" },
  },
  "a setuid file under a policy that refuses": {
    policy: { setuid: "refuse" },
    layers: [[file("bin/su", "x", { mode: 0o4755 }), file("bin/zz", "x", { mode: 0o2755 })]],
    refused: [
      "IMAGE_PRIVILEGED_FILE",
      /^"\/bin\/su" has the setuid bit, which the build policy refuses, and 1 more like it$/,
    ],
  },
  "a setgid file under a policy that refuses": {
    policy: { setuid: "refuse" },
    layers: [[file("a", "x", { mode: 0o2755 })]],
    refused: ["IMAGE_PRIVILEGED_FILE", /^"\/a" has the setgid bit/],
  },
  "a file capability under a policy that refuses": {
    policy: { setuid: "refuse" },
    layers: [[withXattr("ping", "security.capability", capability)]],
    refused: ["IMAGE_PRIVILEGED_FILE", /^"\/ping" has file capabilities/],
  },
  "what an upper layer hides is not refused": {
    policy: { setuid: "refuse" },
    layers: [[file("su", "old", { mode: 0o4755 })], [file("su", "new")]],
    gives: { su: '"new"' },
  },
};

const attributes: Record<string, Case> = {
  "of the packing machine and of overlayfs are left out": {
    layers: [
      [
        file("a", "x", {
          xattrs: new Map(
            ["user.a", "trusted.b", "security.selinux", "trusted.overlay.opaque", "system.nfs4_acl"].map((name) => [
              name,
              Buffer.from("v"),
            ]),
          ),
        }),
        { ...symlink("l", "a"), xattrs: new Map([["user.b", Buffer.from("z")]]) },
      ],
    ],
    gives: { a: '"x" trusted.b=76 user.a=76', l: "-> a" },
    drops: ["security.selinux", "system.nfs4_acl", "trusted.overlay.opaque", "user.b"],
  },
  "a malformed file capability": {
    layers: [[withXattr("a", "security.capability", "junk")]],
    ...invalid(/malformed file capability/),
  },
  "over the limit": {
    layers: [[withXattr("a", "user.a", Buffer.alloc(4000))]],
    ...tooLarge(/extended attributes of "a"/),
  },
  "an access list in text becomes the kernel's form": {
    layers: [
      [
        paxEntry(
          [["SCHILY.acl.access", "user::rw-,user:joe:r--:7,group::r--,mask::r--,other::---"]],
          file("a", "x", { mode: 0o640 }),
        ),
        paxEntry(
          [["SCHILY.acl.access", "user::rw-\nuser:7:r--\t#effective:r--\ngroup::r--\nmask::r--\nother::---\n"]],
          file("b", "x", { mode: 0o640 }),
        ),
      ],
    ],
    gives: { a: `640 "x" system.posix_acl_access=${acl}`, b: `640 "x" system.posix_acl_access=${acl}` },
  },
  "an access list in bytes is kept": {
    layers: [[withXattr("a", "system.posix_acl_access", Buffer.from(acl, "hex"))]],
    gives: { a: `"x" system.posix_acl_access=${acl}` },
  },
  "a directory's default list": {
    layers: [
      [paxEntry([["SCHILY.acl.default", "user::rw-,user:joe:r--:7,group::r--,mask::r--,other::---"]], dir("d"))],
    ],
    gives: { d: `dir system.posix_acl_default=${acl}` },
  },
  "a list that says what the mode says is left out": {
    layers: [[paxEntry([["SCHILY.acl.access", "user::rw-,group::r--,other::r--"]], file("a"))]],
    gives: { a: '"x"' },
    drops: [],
  },
  "a list of names without numbers is left out": {
    layers: [[paxEntry([["SCHILY.acl.access", "user::rw-,user:joe:r--,group::r--,mask::r--,other::---"]], file("a"))]],
    gives: { a: '"x"' },
    drops: ["SCHILY.acl.access"],
  },
  "an incomplete list": {
    layers: [[paxEntry([["SCHILY.acl.access", "user::rw-,user:joe:r--:7,group::r--,other::r--"]], file("a"))]],
    ...invalid(/access control list is not complete/),
  },
  "a list that is no list": {
    layers: [[paxEntry([["SCHILY.acl.access", "user:rwx"]], file("a"))]],
    ...invalid(/access control list has a malformed entry/),
  },
  "bytes that are no list": {
    layers: [[withXattr("a", "system.posix_acl_access", "junk")]],
    ...invalid(/malformed access control list/),
  },
};

/** An old GNU header: pairs of offset and length, then the real size. */
const oldSparse = (
  name: string,
  pairs: readonly (readonly [number, number])[],
  realSize: number,
  content: string,
  more = false,
): Buffer =>
  tarEntry(file(name, content), (header) => {
    header.write("S", 156);
    header.write("ustar  \0", 257, "latin1");
    for (const [at, [offset, length]] of pairs.entries()) writePair(header, 386 + 24 * at, offset, length);
    header.write(more ? "\u0001" : "\0", 482, "latin1");
    header.write(`${realSize.toString(8).padStart(11, "0")}\0`, 483, "latin1");
  });
const writePair = (block: Buffer, at: number, offset: number, length: number): void => {
  block.write(`${offset.toString(8).padStart(11, "0")}\0${length.toString(8).padStart(11, "0")}\0`, at, "latin1");
};
/** Splits the header of an old GNU entry from its content, to put blocks of the map in between. */
const withMapBlocks = (entry: Buffer, ...blocks: Buffer[]): Buffer =>
  Buffer.concat([entry.subarray(0, 512), ...blocks, entry.subarray(512)]);
const mapBlock = (pairs: readonly (readonly [number, number])[], more: boolean): Buffer => {
  const block = Buffer.alloc(512);
  for (const [at, [offset, length]] of pairs.entries()) writePair(block, 24 * at, offset, length);
  block.writeUInt8(more ? 1 : 0, 504);
  return block;
};
const sparse1 = (name: string, map: string, realSize: number, content: string): Buffer =>
  paxEntry(
    [
      ["GNU.sparse.major", "1"],
      ["GNU.sparse.minor", "0"],
      ["GNU.sparse.name", name],
      ["GNU.sparse.realsize", String(realSize)],
    ],
    file(
      `GNUSparseFile.0/${name}`,
      Buffer.concat([Buffer.from(map), Buffer.alloc((512 - (map.length % 512)) % 512), Buffer.from(content)]),
    ),
  );
const holey = '"\\0\\0\\0\\0ab\\0\\0cd\\0\\0"';

const sparseFiles: Record<string, Case> = {
  "old GNU": {
    layers: [
      [
        oldSparse(
          "s",
          [
            [4, 2],
            [8, 2],
            [12, 0],
          ],
          12,
          "abcd",
        ),
        file("z"),
      ],
    ],
    gives: { s: holey, z: '"x"' },
  },
  "old GNU over several blocks": {
    layers: [
      [
        withMapBlocks(
          oldSparse(
            "s",
            many(4, (i) => [2 * i, 1] as const),
            60,
            "a".repeat(26),
            true,
          ),
          mapBlock(
            many(21, (i) => [8 + 2 * i, 1] as const),
            true,
          ),
          mapBlock(
            [
              [50, 1],
              [60, 0],
            ],
            false,
          ),
        ),
        file("z"),
      ],
    ],
    gives: { s: JSON.stringify(`${"a\0".repeat(26)}${"\0".repeat(8)}`).replaceAll("\\u0000", "\\0"), z: '"x"' },
  },
  "PAX 0.0": {
    layers: [
      [
        paxEntry(
          [
            ["GNU.sparse.size", "12"],
            ["GNU.sparse.numblocks", "2"],
            ["GNU.sparse.offset", "4"],
            ["GNU.sparse.numbytes", "2"],
            ["GNU.sparse.offset", "8"],
            ["GNU.sparse.numbytes", "2"],
          ],
          file("s", "abcd"),
        ),
      ],
    ],
    gives: { s: holey },
  },
  "PAX 0.1": {
    layers: [
      [
        paxEntry(
          [
            ["GNU.sparse.size", "12"],
            ["GNU.sparse.numblocks", "2"],
            ["GNU.sparse.map", "4,2,8,2"],
            ["GNU.sparse.name", "s"],
          ],
          file("GNUSparseFile.7/s", "abcd"),
        ),
      ],
    ],
    gives: { s: holey },
  },
  "PAX 1.0": { layers: [[sparse1("s", "2\n4\n2\n8\n2\n", 12, "abcd"), file("z")]], gives: { s: holey, z: '"x"' } },
  "a file that is one hole": {
    layers: [[sparse1("s", "0\n", 1 << 20, ""), file("z")]],
    gives: { s: "1048576 bytes", z: '"x"' },
  },
  "a file of 16 GiB that is nearly all hole": {
    limits: { fileBytes: 2 ** 20 },
    layers: [[sparse1("s", "1\n0\n4\n", 2 ** 34, "abcd")]],
    ...tooLarge(/the file "s" is over the limit of 1 MiB/),
  },
  "many holes that add up": {
    limits: { uncompressedBytes: 2 ** 20 },
    layers: [many(3, (i) => sparse1(`s${i}`, "0\n", 2 ** 19, ""))],
    ...tooLarge(/the image's files are over/),
  },
  "ranges that overlap": {
    layers: [[sparse1("s", "2\n4\n4\n6\n2\n", 12, "abcdef")]],
    ...invalid(/not in ascending order/),
  },
  "ranges that descend": {
    layers: [[sparse1("s", "2\n8\n2\n4\n2\n", 12, "abcd")]],
    ...invalid(/not in ascending order/),
  },
  "a range beyond the file": {
    layers: [[sparse1("s", "1\n10\n4\n", 12, "abcd")]],
    ...invalid(/reaches beyond the file/),
  },
  "a range beyond all numbers": {
    layers: [[sparse1("s", "1\n9007199254740991\n9007199254740991\n", 12, "")]],
    ...invalid(/reaches beyond the file/),
  },
  "less content than ranges": { layers: [[sparse1("s", "1\n0\n8\n", 12, "abcd")]], ...invalid(/names 8 bytes of 4/) },
  "more content than ranges": { layers: [[sparse1("s", "1\n0\n2\n", 12, "abcd")]], ...invalid(/names 2 bytes of 4/) },
  "a map longer than its content": {
    layers: [[sparse1("s", `500\n${"0\n".repeat(254)}`, 12, "")]],
    ...invalid(/longer than its content/),
  },
  "a map that counts to a million": {
    layers: [[sparse1("s", "1000000\n", 12, "")]],
    ...invalid(/over 65536 data ranges/),
  },
  "a map of letters": { layers: [[sparse1("s", "1\nx\n2\n", 12, "")]], ...invalid(/not a number/) },
  "a number that does not end": { layers: [[sparse1("s", "1".repeat(30), 12, "")]], ...invalid(/does not end/) },
  "an offset without a length": {
    layers: [
      [
        paxEntry(
          [
            ["GNU.sparse.size", "12"],
            ["GNU.sparse.map", "4,2,8"],
          ],
          file("s", "ab"),
        ),
      ],
    ],
    ...invalid(/an offset without a length/),
  },
  "fewer ranges than announced": {
    layers: [
      [
        paxEntry(
          [
            ["GNU.sparse.size", "1"],
            ["GNU.sparse.numblocks", "2"],
            ["GNU.sparse.map", "0,1"],
          ],
          file("s"),
        ),
      ],
    ],
    ...invalid(/does not have the 2 ranges it announces/),
  },
  "no real size": {
    layers: [[paxEntry([["GNU.sparse.map", "0,1"]], file("s"))]],
    ...invalid(/does not name the file's size/),
  },
  "an unknown version": {
    layers: [
      [
        paxEntry(
          [
            ["GNU.sparse.major", "2"],
            ["GNU.sparse.size", "1"],
          ],
          file("s"),
        ),
      ],
    ],
    ...invalid(/unknown version 2\.0/),
  },
  "a map for a directory": {
    layers: [
      [
        paxEntry(
          [
            ["GNU.sparse.map", "0,1"],
            ["GNU.sparse.size", "1"],
          ],
          dir("d"),
        ),
      ],
    ],
    ...invalid(/belongs to no file/),
  },
  "both forms at once": {
    layers: [
      [
        paxEntry(
          [
            ["GNU.sparse.map", "0,1"],
            ["GNU.sparse.size", "1"],
          ],
          file("s"),
          (header) => header.write("S", 156),
        ),
      ],
    ],
    ...invalid(/belongs to no file/),
  },
  "an old GNU map of negative numbers": {
    layers: [[tarEntry(file("s"), (header) => header.fill(0xff, 386, 398).write("S", 156))]],
    ...invalid(/negative number/),
  },
  "an old GNU map cut short": {
    layers: [{ archive: oldSparse("s", [[0, 1]], 1, "a", true).subarray(0, 512) }],
    ...invalid(/middle of an entry/),
  },
};

const tarForms: Record<string, Case> = {
  "old directories end in a slash": {
    layers: [[tarEntry(file("d/", ""), (header) => header.write("\0", 156))]],
    gives: { d: "dir 644" },
  },
  "a contiguous file is a file": {
    layers: [[tarEntry(file("a"), (header) => header.write("7", 156))]],
    gives: { a: '"x"' },
  },
  "an archive-wide header has no meaning": {
    layers: [[paxHeader("10 path=b\n", "g"), file("a")]],
    gives: { a: '"x"' },
  },
  "an empty PAX value leaves the header's own": {
    layers: [[paxEntry([["path", ""]], file("a"))]],
    gives: { a: '"x"' },
  },
  "the last of equal PAX records wins": {
    layers: [
      [
        paxEntry(
          [
            ["path", "b"],
            ["path", "c"],
          ],
          file("a"),
        ),
      ],
    ],
    gives: { c: '"x"' },
  },
  "a PAX size rules over the header's": {
    layers: [[paxEntry([["size", "3"]], file("a", "abc"), (header) => header.write("00000000777\0", 124)), file("b")]],
    gives: { a: '"abc"', b: '"x"' },
  },
  "a GNU long name": {
    layers: [[paxHeader(`${"n".repeat(120)}/a\0`, "L"), file("short")]],
    gives: { ["n".repeat(120)]: "dir", [`${"n".repeat(120)}/a`]: '"x"' },
  },
  "owners beyond octal and times to the nanosecond": {
    layers: [[file("a", "x", { uid: 0xfffffffe, gid: 70_000, mtimeNs: 1_500_000_000_123_456_789n })]],
    gives: { a: '"x" 4294967294:70000 @1500000000123456789' },
  },
  "times outside what file systems hold are clamped": {
    layers: [[file("a", "x", { mtimeNs: -5n }), file("b", "x", { mtimeNs: 10n ** 20n })]],
    gives: { a: '"x" @0', b: '"x" @4294967295000000000' },
  },
  "the owner that chown reads as no change": {
    layers: [[tarEntry(file("a"), (h) => h.fill(0xff, 112, 116).fill(0, 109, 112).writeUInt8(0x80, 108))]],
    ...invalid(/owner 4294967295 is out of range/),
  },
  "a negative size": { layers: [[tarEntry(file("a"), (h) => h.fill(0xff, 124, 136))]], ...invalid(/negative size/) },
  "a size beyond any disk": {
    layers: [[tarEntry(file("a"), (h) => h.fill(0x7f, 125, 136).writeUInt8(0x80, 124))]],
    ...invalid(/size is out of range/),
  },
  "a size that is not a number": {
    layers: [[tarEntry(file("a"), (h) => h.write("zzz", 124))]],
    ...invalid(/size is not a number/),
  },
  "a wrong checksum": {
    layers: [[Buffer.concat([Buffer.from("x"), tarEntry(file("a"))]).subarray(0, 1024)]],
    ...invalid(/checksum/),
  },
  "a multi-volume part": {
    layers: [[tarEntry(file("a"), (h) => h.write("M", 156))]],
    ...invalid(/type "M" are not supported/),
  },
  "a volume label": { layers: [[tarEntry(file("a"), (h) => h.write("V", 156))]], ...invalid(/type "V"/) },
  "a PAX record longer than its header": {
    layers: [[paxHeader("999 path=a\n"), file("a")]],
    ...invalid(/wrong length/),
  },
  "a PAX record without a key": { layers: [[paxHeader("6 abc\n"), file("a")]], ...invalid(/no key/) },
  "a PAX size with a sign": { layers: [[paxHeader("11 size=-1\n"), file("a")]], ...invalid(/size is out of range/) },
  "a PAX time that is none": {
    layers: [[paxEntry([["mtime", "yesterday"]], file("a"))]],
    ...invalid(/mtime is not a time/),
  },
  "an endless row of extended headers": {
    layers: [[...many(40, () => paxHeader("10 path=a\n")), file("a")]],
    ...invalid(/too many extended headers/),
  },
  "an extended header over 1 MiB": {
    layers: [[tarEntry(file("a"), (h) => h.write("L", 156) + h.write("77777777777", 124))]],
    ...invalid(/over 1048576 bytes/),
  },
  "an extended header at the end": {
    layers: [[paxHeader("10 path=a\n")]],
    ...invalid(/ends after an extended header/),
  },
};

const plain = tarOf([file("a", "content".repeat(300))]);
const plainTree = { a: "2100 bytes" };
const emptyGzip = gzipSync(Buffer.alloc(0));
const gzipWithWrongSum = (bytes: Buffer): Buffer => {
  const stored = gzipSync(bytes);
  stored.writeUInt8(stored.readUInt8(stored.length - 6) ^ 1, stored.length - 6);
  return stored;
};
/** One uncompressed block in a frame that asks for a window of 2^windowLog bytes (RFC 8878, sections 3.1.1.1.2 and 3.1.1.2). */
const zstdFrameOf = (windowLog: number, bytes: Buffer): Buffer => {
  const head = Buffer.from("28b52ffd0000000000", "hex");
  head.writeUInt8((windowLog - 10) << 3, 5);
  head.writeUIntLE((bytes.length << 3) | 1, 6, 3);
  return Buffer.concat([head, bytes]);
};
const skippable = Buffer.from("502a4d18040000000a0b0c0d", "hex");
const streams: Record<string, Case> = {
  "no compression": { layers: [{ archive: plain }], gives: plainTree },
  "gzip in two members": {
    layers: [
      { archive: plain, stored: Buffer.concat([gzipSync(plain.subarray(0, 700)), gzipSync(plain.subarray(700))]) },
    ],
    gives: plainTree,
  },
  "zstd in two frames": {
    layers: [
      {
        archive: plain,
        stored: Buffer.concat([zstdCompressSync(plain.subarray(0, 700)), zstdCompressSync(plain.subarray(700))]),
      },
    ],
    gives: plainTree,
  },
  "zstd behind a skippable frame": {
    layers: [{ archive: plain, stored: Buffer.concat([skippable, zstdCompressSync(plain)]) }],
    gives: plainTree,
  },
  "gzip in many members, some of them empty": {
    layers: [
      {
        archive: plain,
        stored: Buffer.concat(Array.from(plain, (_, at) => [gzipSync(plain.subarray(at, at + 1)), emptyGzip]).flat()),
      },
    ],
    gives: plainTree,
  },
  "zeros behind the end of a gzip stream": {
    layers: [{ archive: plain, stored: Buffer.concat([gzipSync(plain), Buffer.alloc(100)]) }],
    gives: plainTree,
  },
  "more zeros behind the end of a gzip stream than are read at once": {
    layers: [{ archive: plain, stored: Buffer.concat([gzipSync(plain), Buffer.alloc(2 ** 22)]) }],
    gives: plainTree,
  },
  "bytes behind the end of a gzip stream": {
    layers: [{ archive: plain, stored: Buffer.concat([gzipSync(plain), Buffer.from("hidden")]) }],
    ...invalid(/compression is damaged/),
  },
  "no end mark": { layers: [{ archive: plain.subarray(0, -1024) }], gives: plainTree },
  "entries behind the end mark belong to nothing": {
    layers: [{ archive: Buffer.concat([plain, tarOf([file("hidden")])]) }],
    gives: plainTree,
  },
  "an empty layer": { layers: [{ archive: Buffer.alloc(0) }], gives: {} },
  "no layers": { layers: [], gives: {} },
  "an end in the middle of content": {
    layers: [{ archive: plain.subarray(0, 1500) }],
    ...invalid(/middle of an entry/),
  },
  "an end in the middle of padding": {
    layers: [{ archive: plain.subarray(0, 2700) }],
    ...invalid(/middle of an entry/),
  },
  "an end in the middle of a header": {
    layers: [{ archive: plain.subarray(0, 300) }],
    ...invalid(/middle of an entry/),
  },
  "gzip cut short": {
    layers: [{ archive: plain, stored: gzipSync(plain).subarray(0, -20) }],
    ...invalid(/compression is damaged/),
  },
  "gzip with a wrong checksum": {
    layers: [{ archive: plain, stored: gzipWithWrongSum(plain) }],
    ...invalid(/compression is damaged/),
  },
  "zstd cut short": {
    layers: [{ archive: plain, stored: zstdCompressSync(plain).subarray(0, -5) }],
    ...invalid(/compression is damaged|middle of an entry/),
  },
  "zstd damaged in the middle": {
    layers: [{ archive: plain, stored: Buffer.from(zstdCompressSync(plain)).fill(0xaa, 10, 30) }],
    ...invalid(/compression is damaged/),
  },
  "zstd that asks for much memory": {
    layers: [{ archive: plain, stored: zstdFrameOf(27, plain) }],
    ...invalid(/zstd window is over 32 MiB/),
  },
  "another archive than the config names": {
    layers: [{ archive: plain, stored: tarOf([file("other")]) }],
    ...invalid(/^layer sha256:[0-9a-f]{12}: it does not unpack to the digest in the image's config$/),
  },
  "bytes behind the archive that the digest does not cover": {
    layers: [{ archive: plain, stored: Buffer.concat([plain, Buffer.from("hidden")]) }],
    ...invalid(/does not unpack to the digest/),
  },
  "no bytes at all": {
    layers: [{ archive: plain, stored: Buffer.alloc(0) }],
    ...invalid(/does not unpack to the digest/),
  },
};

const zeros = Buffer.alloc(80 * 2 ** 20);
const bombs: Record<string, Case> = {
  "by ratio": {
    layers: [{ archive: zeros, stored: gzipSync(zeros, { level: 9 }) }],
    ...tooLarge(/layer unpacks to over/),
  },
  "by the size of a layer": {
    limits: { uncompressedBytes: 1000 },
    layers: [{ archive: plain }],
    ...tooLarge(/layer unpacks to over/),
  },
  "by the size of all files": {
    limits: { uncompressedBytes: 4500 },
    layers: [[file("a", "x".repeat(2500))], [file("b", "x".repeat(2500))]],
    ...tooLarge(/the image's files are over/),
  },
  "by the size of a file": {
    limits: { fileBytes: 99 },
    layers: [[file("a", "x".repeat(100))]],
    ...tooLarge(/the file "a" is over/),
  },
  "by entries of a layer": {
    limits: { entries: 2 },
    layers: [[file("a"), file("b"), file("c")]],
    ...tooLarge(/entries are over the limit of 2/),
  },
  "by entries of all layers": {
    limits: { entries: 2 },
    layers: [[file("a"), file("b")], [file("c")]],
    ...tooLarge(/the image's entries are over the limit of 2/),
  },
  "by directories that one path implies": {
    limits: { entries: 20 },
    layers: [[file(deep(50))]],
    ...tooLarge(/entries are over/),
  },
  "by depth": { layers: [[file(deep(200))]], ...tooLarge(/the depth of .* is over the limit of 128/) },
  "by depth behind a link": {
    layers: [[dir(deep(100)), symlink("l", deep(100)), file(`l/${deep(100)}`)]],
    ...tooLarge(/the depth of/),
  },
  "by a long path": {
    layers: [[file(`${`${"n".repeat(200)}/`.repeat(16)}x`)]],
    ...tooLarge(/an entry's path is over/),
  },
  "by a long path behind a link": {
    layers: [
      [
        dir(`${"n".repeat(200)}/`.repeat(10)),
        symlink("l", `${"n".repeat(200)}/`.repeat(10)),
        file(`l/${`${"n".repeat(200)}/`.repeat(10)}x`),
      ],
    ],
    ...tooLarge(/a path of the image is over/),
  },
  "by bytes of names": {
    limits: { metadataBytes: 4096 },
    layers: [many(50, (i) => file(`${i}${"n".repeat(100)}`))],
    ...tooLarge(/names and attributes are over/),
  },
  "by bytes of data ranges": {
    limits: { metadataBytes: 4096 },
    layers: [[sparse1("s", `300\n${many(300, (i) => `${2 * i}\n1\n`).join("")}`, 700, "a".repeat(300))]],
    ...tooLarge(/names and attributes are over/),
  },
  "by layers": {
    limits: { layers: 3 },
    layers: many(4, () => [file("a")]),
    ...tooLarge(/layers are over the limit of 3/),
  },
};

const table = {
  paths,
  names,
  conflicts,
  "hard links": hardLinks,
  whiteouts,
  devices,
  privileges,
  attributes,
  "sparse files": sparseFiles,
  "tar forms": tarForms,
  streams,
  bombs,
};

/** A path in a few words: what differs from a plain file or directory. */
function told({ entry, content }: Seen): string {
  const { type, mode, uid, gid, mtimeNs } = entry;
  const usual = type === "directory" ? 0o755 : 0o644;
  const words = {
    file: () =>
      content.length <= 64
        ? JSON.stringify(content.toString("latin1")).replaceAll("\\u0000", "\\0")
        : `${content.length} bytes`,
    directory: () => "dir",
    symlink: () => `-> ${entry.linkName}`,
    hardlink: () => `= ${entry.linkName.replace(/^\.\//, "")}`,
    char: () => `char ${entry.deviceMajor}:${entry.deviceMinor}`,
    block: () => `block ${entry.deviceMajor}:${entry.deviceMinor}`,
    fifo: () => "fifo",
  }[type]();
  const parts = [words];
  if (type === "file" && mode !== usual) parts.unshift(mode.toString(8));
  if (type === "directory" && mode !== usual) parts.push(mode.toString(8));
  if (uid !== 0 || gid !== 0) parts.push(`${uid}:${gid}`);
  if (type === "file" && mtimeNs !== 1_700_000_000_000_000_000n) parts.push(`@${mtimeNs}`);
  if (type === "hardlink") return words;
  for (const name of [...entry.xattrs.keys()].sort()) parts.push(`${name}=${entry.xattrs.get(name)?.toString("hex")}`);
  return parts.join(" ");
}

const unmountable = needsMount();

for (const [group, cases] of Object.entries(table)) {
  // Side by side: most of a case's time is waiting for the disk and the mount.
  describe(group, { concurrency: 8 }, () => {
    for (const [name, { layers, gives, refused, drops, ...options }] of Object.entries(cases)) {
      test(`${name}${refused === undefined ? "" : " (refused)"}`, async (context) => {
        const archives = layers.map((layer) => ("archive" in layer ? layer : { archive: tarOf(layer) }));
        // Half of the cases with devices, where their layers have content for one.
        const attach = (layer: number): boolean => (name.length + layer) % 2 === 0;
        const built = withImage(archives, { attach, ...options }, async (image) => {
          if (drops !== undefined) assert.deepEqual(image.droppedXattrs, drops);
          if (needsErofsUtils === false) checkErofs(image.imagePath, image.devicePaths);
          if (unmountable !== false) return context.skip(unmountable);
          const seen = [...(await seenIn(image.imagePath, image))].filter(([path]) => path !== "");
          assert.deepEqual(Object.fromEntries(seen.map(([path, what]) => [path, told(what)])), gives);
        });
        if (refused === undefined) return built;
        const [reason, why] = refused;
        await assert.rejects(built, (error) => {
          assert.ok(isServiceError(error, reason), String(error));
          assert.match(error.message, why);
          return true;
        });
      });
    }
  });
}

test("every case has an outcome", () => {
  for (const { gives, refused } of Object.values(table).flatMap((cases) => Object.values(cases))) {
    assert.equal([gives, refused].filter((outcome) => outcome !== undefined).length, 1);
  }
});
