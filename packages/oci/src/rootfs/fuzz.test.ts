import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, open, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { mib, ServiceError } from "@unkey/base";
import { digestHex, digestOf } from "../digest.ts";
import { InvalidInput } from "../invalid-input.ts";
import { defaultImageLimits } from "../layer/limits.ts";
import type { TarEntry } from "../tar/tar-entry.ts";
import { TarParser } from "../tar/tar-parser.ts";
import { assembleLayers, type TestUnpackedLayer } from "../testing/assemble-layers.ts";
import { checkErofs, needsErofsUtils } from "../testing/built-image.ts";
import { paxEntry, paxHeader, setChecksum, type TarFixture, tarEntry } from "../testing/tar-fixture.ts";
import { unpackBytes } from "../testing/unpack-bytes.ts";
import type { AssembledRootfs } from "./rootfs-assembly.ts";

/*
 * Layers that are nearly right: valid archives of names, links and extensions that meet each other, then changed at one of
 * their levels: header, PAX record, sparse map, block order, compression, or the unpacked layer on disk. Whatever comes of it
 * is an image that passes fsck.erofs, or a refusal with a reason of its own; nothing else is written anywhere.
 *
 * Each run has its own generator, so that one is repeated by itself: UNKEY_FUZZ_SEED and UNKEY_FUZZ_FROM as a failure prints
 * them. UNKEY_FUZZ_RUNS=20000 looks for new cases. What it finds becomes a case of hostile-layers.test.ts.
 */

const reasons = new Set(["IMAGE_LAYER_INVALID", "IMAGE_TOO_LARGE", "IMAGE_PRIVILEGED_FILE", "LAYER_CACHE_DAMAGED"]);
const limits = {
  ...defaultImageLimits,
  uncompressedBytes: 8 * mib,
  fileBytes: 4 * mib,
  entries: 500,
  metadataBytes: mib,
};

class Dice {
  #state: number;
  /** How much of what can go wrong does, in this run: most refusals hide what comes behind them. */
  readonly #wildness: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
    this.#wildness = this.pick([0.03, 0.1, 0.3, 1]);
  }

  /** An integer from 0 to `sides` - 1 (mulberry32). */
  roll(sides: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * sides);
  }

  pick<T>(choices: readonly [T, ...T[]]): T {
    return choices[this.roll(choices.length)] ?? choices[0];
  }

  chance(percent: number): boolean {
    return this.roll(100) < percent;
  }

  /** A chance of something that spoils an image. */
  spoils(percent: number): boolean {
    return this.roll(10_000) < percent * 100 * this.#wildness;
  }

  times<T>(most: number, make: () => T): T[] {
    return Array.from({ length: this.roll(most + 1) }, make);
  }
}

const parts = [
  "a",
  "b",
  "c",
  "d",
  "..",
  ".",
  "",
  ".wh.a",
  ".wh..wh..opq",
  ".wh..",
  "\xff\n",
  "n".repeat(256),
  "\u00fc",
] as const;
const numbers = ["0", "1", "3", "512", "4096", "-1", "1.5", "", "9007199254740993", "4294967296", "x"] as const;
const keys = [
  "path",
  "linkpath",
  "size",
  "uid",
  "mtime",
  "GNU.sparse.map",
  "GNU.sparse.size",
  "GNU.sparse.realsize",
  "GNU.sparse.major",
  "GNU.sparse.minor",
  "GNU.sparse.name",
  "GNU.sparse.offset",
  "GNU.sparse.numbytes",
  "GNU.sparse.numblocks",
  "SCHILY.xattr.user.a",
  "SCHILY.xattr.security.capability",
  "SCHILY.xattr.system.posix_acl_access",
  "SCHILY.acl.access",
  "SCHILY.acl.default",
] as const;
const texts = [
  "1,2,3,4",
  "0,3",
  "0,1,1,2",
  "user::rwx,group::r-x,other::---",
  "user::rwx,user:x:r--:7,group::r-x,mask::rwx,other::---",
  "1700000000.123456789",
  "../../etc/passwd",
  "\0",
  "a=b\nc",
] as const;

/** There from the start, so that links and whiteouts often find something. */
const base = [
  tarEntry({ name: "a", type: "directory" }),
  tarEntry({ name: "a/first", content: "1" }),
  tarEntry({ name: "first", content: "2" }),
  tarEntry({ name: "link", type: "symlink", linkName: "a" }),
];

function pathOf(dice: Dice, isDirectory: boolean): string {
  if (dice.spoils(15)) return dice.times(3, () => dice.pick(parts)).join("/");
  const parents = dice.times(2, () => dice.pick(["a", "b", "link"]));
  const last = isDirectory
    ? dice.pick(["a", "b", "g"])
    : dice.pick(["c", "d", "e", "f", ".wh.c", ".wh.a", ".wh..wh..opq"]);
  return [...parents, last].join("/");
}

function entryOf(dice: Dice): Buffer {
  const type = dice.pick([
    "file",
    "file",
    "file",
    "directory",
    "directory",
    "symlink",
    "hardlink",
    "char",
    "fifo",
  ] as const);
  const fixture: TarFixture = {
    name: pathOf(dice, type === "directory"),
    type,
    linkName:
      type === "hardlink"
        ? dice.pick(["first", "/a/first", "link/first", dice.spoils(30) ? pathOf(dice, false) : "first"])
        : type === "symlink"
          ? dice.pick(["a", "../b", "/c", "link"])
          : "",
    content:
      type === "file"
        ? Buffer.alloc(dice.pick([0, 1, 3, 511, 512, 2048, 2049, 4096, 9000]), dice.pick(["x", "yz"]))
        : "",
    mode: dice.pick([0o644, 0o755, 0o4755, 0o7777]),
    deviceMajor: type === "char" ? dice.roll(dice.spoils(50) ? 5000 : 300) : 0,
    ...(dice.chance(10) ? { xattrs: new Map([["user.x", Buffer.alloc(dice.roll(300))]]) } : {}),
  };
  const edit = dice.spoils(25) ? (header: Buffer) => editHeader(dice, header) : undefined;
  if (dice.chance(8)) return sparseEntry(dice, fixture.name);
  if (dice.spoils(30)) {
    return paxEntry(
      dice.times(4, () => [dice.pick(keys), dice.pick(dice.chance(50) ? numbers : texts)] as const),
      fixture,
      edit,
    );
  }
  if (dice.chance(3))
    return paxHeader(
      Buffer.from(dice.pick(["12 path=a\n", "3 a", "999 a=b\n", "10 path=a\n"])),
      dice.pick(["x", "g", "L", "K"]),
    );
  return tarEntry(fixture, edit);
}

/** A map in the content, mostly right: of as many ranges as it says, over as much content as they name. */
function sparseEntry(dice: Dice, name: string): Buffer {
  const ranges: number[] = [];
  let at = 0;
  let total = 0;
  for (let left = dice.roll(5); left > 0; left--) {
    const offset = at + dice.pick([0, 1, 4096, 10_000]) - (dice.spoils(8) ? 1 : 0);
    const length = dice.pick([0, 1, 512, 4096, 5000]);
    ranges.push(offset, length);
    at = offset + length;
    total += length;
  }
  const size = at + dice.pick([0, 0, 1, 100_000]) - (dice.spoils(8) ? 1 : 0);
  const map = Buffer.from(`${[ranges.length / 2 + (dice.spoils(8) ? 1 : 0), ...ranges].join("\n")}\n`);
  const content = Buffer.alloc(Math.max(0, total + (dice.spoils(8) ? 1 : 0)), "s");
  const records = [
    ["GNU.sparse.major", "1"],
    ["GNU.sparse.minor", "0"],
    ["GNU.sparse.realsize", String(size)],
  ] as const;
  return paxEntry(records, {
    name,
    content: Buffer.concat([map, Buffer.alloc((512 - (map.length % 512)) % 512), content]),
  });
}

/** Mostly in the fields that steer the parser. */
function editHeader(dice: Dice, header: Buffer): void {
  const at = dice.pick([0, 100, 108, 116, 124, 130, 136, 156, 157, 257, 329, 345, 386, 482, 483, dice.roll(512)]);
  if (at === 156) header.write(dice.pick(["S", "x", "g", "L", "K", "0", "1", "5", "7", "V", "M", "\0"]), at, "latin1");
  else header.writeUInt8(dice.pick([0, 0x30, 0x37, 0x80, 0xff, dice.roll(256)]), at);
}

/** Blocks lost, doubled, swapped or changed; the end cut off or something put behind it. */
function damageArchive(dice: Dice, archive: Buffer): Buffer {
  const blocks = Math.max(1, Math.floor(archive.length / 512));
  const at = 512 * dice.roll(blocks);
  switch (dice.roll(6)) {
    case 0:
      return archive.subarray(0, dice.roll(archive.length + 1));
    case 1:
      return Buffer.concat([archive.subarray(0, at), archive.subarray(at + 512)]);
    case 2:
      return Buffer.concat([archive.subarray(0, at + 512), archive.subarray(at)]);
    case 3:
      return Buffer.concat([archive, Buffer.alloc(dice.roll(2000), dice.roll(256))]);
    case 4:
      return Buffer.concat([archive.subarray(0, at), Buffer.alloc(512), archive.subarray(at)]);
    default: {
      const changed = Buffer.from(archive);
      if (changed.length === 0) return changed;
      for (let left = 1 + dice.roll(6); left > 0; left--) changed.writeUInt8(dice.roll(256), dice.roll(changed.length));
      if (dice.chance(60) && at + 512 <= changed.length) setChecksum(changed.subarray(at, at + 512));
      return changed;
    }
  }
}

function stored(dice: Dice, archive: Buffer): Buffer {
  const bytes = dice.pick([(b: Buffer) => b, gzipSync, zstdCompressSync])(archive);
  if (!dice.spoils(15) || bytes.length === 0) return bytes;
  if (dice.chance(50)) return bytes.subarray(0, dice.roll(bytes.length));
  const changed = Buffer.from(bytes);
  for (let left = 1 + dice.roll(3); left > 0; left--) changed.writeUInt8(dice.roll(256), dice.roll(changed.length));
  return changed;
}

async function damageFile(dice: Dice, path: string): Promise<void> {
  await using file = await open(path, "r+");
  const { size } = await file.stat();
  if (dice.chance(30)) await file.truncate(dice.roll(size + 1));
  else if (size > 0) await file.write(Buffer.from([dice.roll(256)]), 0, 1, dice.roll(size));
}

/** What the parser makes of an archive in pieces of that size. */
function parsed(archive: Buffer, pieceBytes: number): unknown {
  const entries: TarEntry[] = [];
  const contents = createHash("sha256");
  const parser = new TarParser({
    entry: (entry) => entries.push(entry),
    content: (bytes) => contents.update(bytes),
  });
  try {
    for (let at = 0; at < archive.length; at += pieceBytes) parser.write(archive.subarray(at, at + pieceBytes));
    parser.end();
  } catch (error) {
    if (!(error instanceof InvalidInput || error instanceof ServiceError)) throw error;
    return { entries, refused: error.message };
  }
  return { entries, contents: contents.digest("hex") };
}

/** One random image, through both doors, into `scratch`. */
async function build(dice: Dice, scratch: string): Promise<AssembledRootfs & { devicePaths: string[] }> {
  const signal = new AbortController().signal;
  const layers: TestUnpackedLayer[] = [];
  const devicePaths: string[] = [];
  const attaches = dice.chance(50);
  for (let left = 1 + dice.roll(3); left > 0; left--) {
    const entries = Array.from({ length: 1 + dice.roll(8) }, () => entryOf(dice));
    const whole = Buffer.concat([...(layers.length === 0 ? base : []), ...entries, Buffer.alloc(1024)]);
    const archive = dice.spoils(25) ? damageArchive(dice, whole) : whole;
    const bytes = stored(dice, archive);
    const pieceBytes = dice.pick([archive.length + 1, 1000, 512, 37]);
    assert.deepEqual(parsed(archive, pieceBytes), parsed(archive, archive.length + 1), `pieces of ${pieceBytes}`);
    const directory = await mkdtemp(join(scratch, "layer-"));
    const layer = { digest: digestOf(bytes), diffId: digestOf(archive), directory };
    await unpackBytes(bytes, { ...layer, limits });
    const content = await readFile(join(directory, "content"));
    if (dice.spoils(6)) await damageFile(dice, join(directory, dice.pick(["index", "index", "tails"])));
    const isDevice = attaches && content.length > 0;
    if (isDevice) devicePaths.push(join(directory, "content"));
    layers.push({ ...layer, ...(isDevice && { device: digestHex(digestOf(content)) }) });
  }
  const image = await assembleLayers({
    layers,
    imagePath: join(scratch, "image"),
    format: "erofs",
    identity: "fuzz",
    limits,
    policy: { setuid: dice.pick(["keep", "keep", "strip", "refuse"]) },
    scratchDirectory: scratch,
    signal,
  });
  return { ...image, devicePaths };
}

/** Throws when a directory holds anything but what the two doors write. */
async function checkWritten(scratch: string): Promise<void> {
  for (const name of await readdir(scratch)) {
    if (name === "image") continue;
    assert.match(name, /^layer-/);
    const inside = (await readdir(join(scratch, name))).filter(
      (file) => !["content", "tails", "index", "index.part"].includes(file),
    );
    assert.deepEqual(inside, []);
  }
}

const runs = Number(process.env["UNKEY_FUZZ_RUNS"] ?? 500);
const seed = Number(
  process.env["UNKEY_FUZZ_SEED"] ?? (process.env["UNKEY_FUZZ_RUNS"] === undefined ? 1 : Date.now() % 2 ** 31),
);
const from = Number(process.env["UNKEY_FUZZ_FROM"] ?? 0);

test("layers that are nearly right give a sound image or a reason", { timeout: 3_600_000 }, async (context) => {
  context.diagnostic(`seed ${seed}, ${runs} runs`);
  // In memory where there is such a file system: waiting for a disk would find nothing.
  const home = await mkdtemp(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "oci-fuzz-"));
  const outcomes = new Map<string, number>();
  try {
    for (let run = from; run < from + runs; run++) {
      const scratch = await mkdtemp(join(home, "run-"));
      try {
        const image = await build(new Dice(Math.imul(seed, 0x9e3779b1) ^ run), scratch);
        assert.equal((await stat(join(scratch, "image"))).size, image.sizeBytes);
        if (needsErofsUtils === false) checkErofs(join(scratch, "image"), image.devicePaths);
        outcomes.set("image", (outcomes.get("image") ?? 0) + 1);
      } catch (error) {
        if (!(error instanceof ServiceError) || !reasons.has(error.reason)) {
          throw new Error(`repeat with UNKEY_FUZZ_SEED=${seed} UNKEY_FUZZ_FROM=${run} UNKEY_FUZZ_RUNS=1`, {
            cause: error,
          });
        }
        outcomes.set(error.reason, (outcomes.get(error.reason) ?? 0) + 1);
      }
      await checkWritten(scratch);
      await rm(scratch, { recursive: true });
      assert.deepEqual(await readdir(home), [], "something was written beside the run's own directory");
    }
  } finally {
    await rm(home, { recursive: true, force: true });
  }
  context.diagnostic([...outcomes].map(([outcome, count]) => `${outcome} ${count}`).join(", "));
  assert.ok((outcomes.get("image") ?? 0) > 0 || runs < 50);
  // Far above what such images need: what it would catch is memory that an image can ask for at will.
  assert.ok(process.resourceUsage().maxRSS < 512 * 1024, `${process.resourceUsage().maxRSS} KiB at most`);
});
