import assert from "node:assert/strict";
import { mkdtemp, open, readdir, readFile, rm, stat, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { isServiceError } from "@unkey/base";
import { readDeviceTable } from "./read-device-table.ts";
import { checkImage, mountObstacle, readImage, runMounted } from "./testing/mounted.ts";
import {
  contentStream,
  directoryOf,
  expectedPaths,
  fileDigest,
  fileOf,
  filesOf,
  inDevices,
  metadataOf,
  seenPaths,
  writeImage,
} from "./testing/test-tree.ts";
import type { ErofsDevice, ErofsDirectory, ErofsFile, ErofsNode } from "./tree.ts";
import { writeErofs } from "./write-erofs.ts";

const skip = mountObstacle();
const { signal } = new AbortController();

async function scratch(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "erofs-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Writes a tree and compares what the kernel shows with what the tree says, path by path. */
async function compare(context: TestContext, root: ErofsDirectory): Promise<string> {
  const { imagePath, sizeBytes } = await writeImage(await scratch(context), root);
  checkImage(imagePath);
  const bytes = await readFile(imagePath);
  assert.equal(bytes.length, sizeBytes);
  const expected = expectedPaths(root);
  assert.deepEqual(seenPaths(readImage(imagePath)), expected);
  await compareInDevices(context, root, 2, expected);
  return imagePath;
}

/** The same for the form in which files have their blocks in devices. */
async function compareInDevices(
  context: TestContext,
  root: ErofsDirectory,
  deviceCount: number,
  expected = expectedPaths(root),
): Promise<void> {
  const placed = inDevices(root, deviceCount);
  const written = await writeImage(await scratch(context), placed.root, placed);
  const { imagePath, sizeBytes, devicePaths, devices } = written;
  checkImage(imagePath, devicePaths);
  assert.equal((await stat(imagePath)).size, sizeBytes);
  assert.deepEqual(await readDeviceTable(imagePath), devices);
  assert.deepEqual(seenPaths(readImage(imagePath, devicePaths)), expected);
}

const capability = Buffer.from("0100000200200000000000000000000000000000", "hex");
/** user::rw-, user:1000:r--, group::r--, mask::r--, other::---, as in posix_acl_xattr.h. */
const accessAcl = Buffer.from(
  "0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff",
  "hex",
);
const defaultAcl = Buffer.from("0200000001000700ffffffff04000500ffffffff20000500ffffffff", "hex");

test("every kind of node, as the kernel shows it", { skip }, async (context) => {
  const shared = fileOf(5000, { mode: 0o4755, xattrs: new Map([["security.capability", capability]]) });
  const device: ErofsNode = {
    kind: "char",
    metadata: metadataOf({ mode: 0o666 }),
    deviceMajor: 4095,
    deviceMinor: 0xf_ffff,
  };
  await compare(
    context,
    directoryOf(
      {
        file: fileOf(12),
        empty: fileOf(0),
        "-rf": fileOf(1),
        "!before the dot": fileOf(2),
        "\xff\n\\": fileOf(3),
        shared,
        closed: fileOf(9, { mode: 0 }),
        old: fileOf(7, { mtimeNs: 0n }),
        exact: fileOf(7, { mtimeNs: 1_234_567_890_123_456_789n }),
        before: fileOf(7, { mtimeNs: -1n }),
        owned: fileOf(7, { uid: 65_535, gid: 65_536 }),
        owned2: fileOf(7, { uid: 65_536, gid: 65_535 }),
        owned3: fileOf(7, { uid: 4_294_967_294, gid: 4_294_967_294 }),
        link: { kind: "symlink", metadata: metadataOf({ mode: 0o777 }), target: "../../\xe9tc/passwd" },
        device,
        "device again": device,
        disk: { kind: "block", metadata: metadataOf(), deviceMajor: 259, deviceMinor: 300 },
        pipe: { kind: "fifo", metadata: metadataOf({ mode: 0o640 }), deviceMajor: 0, deviceMinor: 0 },
        acl: fileOf(40, { mode: 0o640, xattrs: new Map([["system.posix_acl_access", accessAcl]]) }),
        directory: directoryOf(
          { inside: fileOf(4096), shared, sub: directoryOf({}), sub2: directoryOf({}) },
          { mode: 0o1777, gid: 7, xattrs: new Map([["system.posix_acl_default", defaultAcl]]) },
        ),
      },
      { mode: 0o751, uid: 3, xattrs: new Map([["user.root", Buffer.from("r")]]) },
    ),
  );
});

test("an empty tree is an image", { skip }, async (context) => {
  await compare(context, directoryOf({}));
});

const tails = [0, 1, 2047, 2048, 2049, 4095];

test("tails at the edge of what is inlined, behind no block, one and three", { skip }, async (context) => {
  const sizes = tails.flatMap((tail) => [tail, 4096 + tail, 3 * 4096 + tail]);
  const xattrs = (length: number) => ({ xattrs: new Map([["user.x", Buffer.alloc(length, "v")]]) });
  const root = directoryOf(
    sizes.flatMap((size) => [
      [`${size}`, fileOf(size)] as const,
      [`extended-${size}`, fileOf(size, { mtimeNs: 1n })] as const,
      // The most that leaves room for any tail, and more than that.
      [`attributes-${size}`, fileOf(size, xattrs(1950))] as const,
      [`much-${size}`, fileOf(size, xattrs(3900 + size / 4096))] as const,
    ]),
  );
  await compare(context, root);
  await compareInDevices(context, root, 1);
});

test("an image has sixteen devices and not seventeen", { skip }, async (context) => {
  const root = directoryOf(Array.from({ length: 40 }, (_, i) => [`${i}`, fileOf(i * 1000)] as const));
  await compareInDevices(context, root, 16);
  const { root: placed, devices } = inDevices(root, 17);
  await assert.rejects(writeImage(await scratch(context), placed, { devices }), RangeError);
});

test("files without blocks have a place in no device", { skip }, async (context) => {
  const root = directoryOf({ empty: fileOf(0), small: fileOf(2048), large: fileOf(10_000) });
  const devices = [Buffer.alloc(4096, 1)];
  const { imagePath, devicePaths } = await writeImage(await scratch(context), root, { devices });
  checkImage(imagePath, devicePaths);
  assert.deepEqual(seenPaths(readImage(imagePath, devicePaths)), expectedPaths(root));
});

test("an image without devices has no table", async (context) => {
  const { imagePath } = await writeImage(await scratch(context), directoryOf({ a: fileOf(5000) }));
  assert.deepEqual(await readDeviceTable(imagePath), []);
  const block = (await readFile(imagePath)).subarray(1024 + 80, 4096);
  assert.ok(block.every((byte) => byte === 0));
});

test("tails at the edges of a block", { skip }, async (context) => {
  // A compact inode leaves 4,064 bytes of its block to the tail, an extended one 4,032.
  const sizes = [1, 31, 32, 33, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097, 8128, 8160, 8161, 8191, 12288];
  const extended = { mtimeNs: 1n };
  const entries = sizes.flatMap((size) => [
    [`compact-${size}`, fileOf(size)] as const,
    [`extended-${size}`, fileOf(size, extended)] as const,
    [`attributes-${size}`, fileOf(size, { xattrs: new Map([["user.x", Buffer.alloc(23, "v")]]) })] as const,
  ]);
  const targets = [1, 31, 32, 4031, 4032, 4033, 4063, 4064, 4065, 4095].flatMap((length) => [
    [`link-${length}`, { kind: "symlink", metadata: metadataOf(), target: "t".repeat(length) }] as const,
    [`old-link-${length}`, { kind: "symlink", metadata: metadataOf(extended), target: "t".repeat(length) }] as const,
  ]);
  // More files than compact ones would make the others' mtime the common one.
  const common = Array.from({ length: 64 }, (_, i) => [`common-${i}`, fileOf(i)] as const);
  await compare(context, directoryOf([...entries, ...targets, ...common]));
});

test("directories of every size around a block", { skip }, async (context) => {
  const named = (count: number, length: number): ErofsDirectory =>
    directoryOf(Array.from({ length: count }, (_, i) => [`${i}`.padStart(length, "n"), fileOf(0)] as const));
  const directories = [1, 2, 14, 15, 16, 17, 29, 30, 31, 32, 100].map(
    (count) => [`long-${count}`, named(count, 255)] as const,
  );
  const short = [145, 160, 200, 252, 253, 254, 255, 256, 257, 511, 1000].map(
    (count) => [`short-${count}`, named(count, 4)] as const,
  );
  // 12 + 1 and 12 + 2 bytes for the dots, then 12 + 247 bytes an entry: a last block full to the byte, and over it.
  const exact = [243, 244, 245, 246, 247, 248].map((length) => {
    const rest = 4096 - 27 - 15 * 259;
    const names = [
      ...Array.from({ length: 15 }, (_, i) => `${i}`.padStart(247, "e")),
      "z".repeat(rest - 12 + (length - 244)),
    ];
    return [`exact-${length}`, directoryOf(names.map((name) => [name, fileOf(0)] as const))] as const;
  });
  await compare(context, directoryOf([...directories, ...short, ...exact]));
});

test("70,000 names in a directory, 66,000 of them of one file", { skip, timeout: 300_000 }, async (context) => {
  const linked = fileOf(10);
  const entries = Array.from(
    { length: 70_000 },
    (_, i) => [`entry-${i.toString(36)}`, i < 66_000 ? linked : fileOf(i % 3)] as const,
  );
  const root = directoryOf({
    big: directoryOf(entries),
    "sub-directories": directoryOf(Array.from({ length: 300 }, (_, i) => [`d${i}`, directoryOf({})] as const)),
  });
  const imagePath = await compare(context, root);
  const missing = ["entry-", "entry-zzzzz", "a", "zz", "entry-1a!"].map((name) => `/mnt/big/${name}`);
  const found = runMounted(imagePath, [
    "sh",
    "-c",
    'for path; do test -e "$path" && echo "$path"; done; true',
    "sh",
    ...missing,
  ]);
  assert.equal(found.toString(), "", "names that are not there are not found");
});

test("a directory of 70,000 directories has more links than a compact inode can count", { skip }, async (context) => {
  const root = directoryOf(Array.from({ length: 70_000 }, (_, i) => [`${i}`, directoryOf({})] as const));
  const { imagePath } = await writeImage(await scratch(context), root);
  checkImage(imagePath);
  assert.equal(runMounted(imagePath, ["stat", "--format=%h %i", "/mnt"]).toString(), "70002 128\n");
});

test("attributes of every size", { skip }, async (context) => {
  const values = [0, 1, 3, 4, 5, 255, 3000, 3996, 4000, 4004, 4096, 5000, 65_535];
  const files = values.map(
    (length) => [`v${length}`, fileOf(100, { xattrs: new Map([["user.v", Buffer.alloc(length, "a")]]) })] as const,
  );
  const many = new Map(Array.from({ length: 200 }, (_, i) => [`user.${i}`, Buffer.from(`value ${i}`)] as const));
  const shared = new Map([
    ["security.selinux", Buffer.from("system_u:object_r:usr_t:s0\0")],
    ["trusted.overlay.opaque", Buffer.from("y")],
    ["user.empty", Buffer.alloc(0)],
    ["user.long", Buffer.alloc(6000, "l")],
  ]);
  const labelled = Array.from(
    { length: 40 },
    (_, i) => [`l${i}`, fileOf(i * 50, { xattrs: new Map([...shared, ["user.own", Buffer.from(`${i}`)]]) })] as const,
  );
  await compare(
    context,
    directoryOf([
      ...files,
      ...labelled,
      ["many", fileOf(100, { xattrs: many })],
      ["many2", fileOf(100, { xattrs: many })],
      [`long name`, fileOf(1, { xattrs: new Map([[`user.${"n".repeat(250)}`, Buffer.from("v")]]) })],
      [
        "link",
        { kind: "symlink", metadata: metadataOf({ xattrs: new Map([["trusted.l", Buffer.from("1")]]) }), target: "x" },
      ],
      ["directory", directoryOf({}, { xattrs: shared })],
    ]),
  );
});

test("attributes that many inodes have alike are stored once", async (context) => {
  const directory = await scratch(context);
  const size = async (count: number): Promise<number> => {
    const xattrs = (): Map<string, Buffer> => new Map([["security.selinux", Buffer.alloc(1000, "label")]]);
    const files = Array.from({ length: count }, (_, i) => [`${i}`, fileOf(0, { xattrs: xattrs() })] as const);
    return (await writeImage(directory, directoryOf(files))).sizeBytes;
  };
  assert.ok((await size(1000)) < 100 * 1024);
});

test("holes read as zeros and take no room", { skip }, async (context) => {
  const range = (offset: number, length: number) => ({ offset, length });
  const root = directoryOf({
    "all hole": fileOf(1 << 20, {}, []),
    "small hole": fileOf(100, {}, []),
    start: fileOf(1 << 20, {}, [range(0, 1)]),
    end: fileOf((1 << 20) + 17, {}, [range((1 << 20) + 10, 7)]),
    "in a block": fileOf(4096, {}, [range(5, 10), range(20, 1), range(4000, 96)]),
    "in the tail": fileOf(5000, {}, [range(4090, 10), range(4999, 1)]),
    "only the tail": fileOf(5000, {}, [range(4500, 10)]),
    "no hole": fileOf(9000, {}, [range(0, 5000), range(5000, 4000)]),
    comb: fileOf(
      1 << 20,
      {},
      Array.from({ length: 128 }, (_, i) => range(i * 8192 + 100, 4096)),
    ),
    "wide comb": fileOf(
      64 << 20,
      {},
      Array.from({ length: 16 }, (_, i) => range(i * (4 << 20), 1 << 16)),
    ),
    "empty ranges": fileOf(1 << 20, {}, [range(0, 0), range(50_000, 0), range(60_000, 1), range(1 << 20, 0)]),
    "with attributes": fileOf(1 << 20, { xattrs: new Map([["user.a", Buffer.alloc(4050)]]) }, [range(8192, 4096)]),
  });
  const imagePath = await compare(context, root);
  assert.ok((await stat(imagePath)).size < 3 << 20);
});

test("a sparse file of 5 TiB", { skip }, async (context) => {
  const size = 5 * 2 ** 40 + 3;
  const far = fileOf(size, {}, [
    { offset: 0, length: 5 },
    { offset: 5 * 2 ** 30, length: 5 },
    { offset: size - 5, length: 5 },
  ]);
  const { imagePath, sizeBytes } = await writeImage(await scratch(context), directoryOf({ far }));
  assert.ok(sizeBytes < 2 ** 25, `${sizeBytes}`);
  const script = `stat --format=%s /mnt/far
    for at in 0 ${5 * 2 ** 30} ${size - 5} ${2 ** 40}; do tail -c +$((at + 1)) /mnt/far | head -c 5 | od -An -tx1; done`;
  assert.equal(
    runMounted(imagePath, ["sh", "-c", script]).toString(),
    `${size}\n 5f 5f 5f 5f 5f\n 5f 5f 30 30 3a\n 30 3a 30 3a 30\n 00 00 00 00 00\n`,
  );
});

test("times to the end of 64 bits", { skip }, async (context) => {
  const second = 1_000_000_000n;
  const times = [
    0n,
    1n,
    second - 1n,
    2n ** 31n * second,
    2n ** 32n * second + 5n,
    2n ** 40n * second + 999_999_999n,
    -second,
    -2n * second + 1n,
  ];
  const root = directoryOf(times.map((mtimeNs, i) => [`${i}`, fileOf(1, { mtimeNs })] as const));
  await compare(context, root);
  const most = directoryOf({
    most: fileOf(1, { mtimeNs: 2n ** 63n * second - 1n }),
    least: fileOf(1, { mtimeNs: -(2n ** 63n) * second }),
  });
  const { imagePath } = await writeImage(await scratch(context), most);
  const seen = runMounted(imagePath, ["stat", "--format=%n %.9Y", "/mnt/least", "/mnt/most"]).toString();
  assert.equal(seen, "/mnt/least -9223372036854775808.000000000\n/mnt/most 9223372036854775807.999999999\n");
});

test("a wrong byte in the superblock's block is noticed", { skip }, async (context) => {
  const { imagePath } = await writeImage(await scratch(context), directoryOf({ a: fileOf(1) }));
  await using handle = await open(imagePath, "r+");
  await handle.write(Buffer.from([1]), 0, 1, 3000);
  assert.throws(() => checkImage(imagePath));
  assert.throws(() => runMounted(imagePath, ["true"]));
});

const sample = (): ErofsDirectory =>
  directoryOf({
    a: fileOf(100_000),
    b: fileOf(5),
    c: directoryOf({ d: fileOf(4096), e: fileOf(70_000, {}, [{ offset: 20_000, length: 10 }]) }),
    f: fileOf(3 << 20),
  });

test("the same input gives the same bytes, whatever the chunks and the order of names in memory", async (context) => {
  const directory = await scratch(context);
  const reversed = sample();
  const digests = new Set<string>();
  for (const chunkBytes of [[1 << 20], [1], [4096], [5000, 1, 70_000], [1 << 24]]) {
    // One byte at a time only for what is small.
    if (chunkBytes[0] === 1) continue;
    digests.add((await writeImage(directory, sample(), { chunkBytes })).digest);
  }
  const files = filesOf(reversed);
  const shuffled: ErofsDirectory = { ...reversed, children: new Map([...reversed.children].toReversed()) };
  const imagePath = join(directory, "shuffled");
  await writeErofs({ root: shuffled, files, content: contentStream(files), imagePath, identity: "test", signal });
  digests.add(fileDigest(imagePath));
  assert.equal(digests.size, 1);
});

test("the same input gives the same bytes in devices too, whatever the chunks", async (context) => {
  const directory = await scratch(context);
  const digests = new Set<string>();
  for (const chunkBytes of [[1 << 20], [5000, 1, 70_000], [7]]) {
    const { root, devices } = inDevices(sample(), 2);
    digests.add((await writeImage(directory, root, { chunkBytes, devices })).digest);
  }
  assert.equal(digests.size, 1);
});

test("another device gives another image", async (context) => {
  const directory = await scratch(context);
  const { root, devices } = inDevices(sample(), 2);
  const { digest } = await writeImage(directory, root, { devices });
  devices[1]?.write("changed");
  assert.notEqual((await writeImage(directory, root, { devices })).digest, digest);
});

test("a byte at a time gives the same bytes", async (context) => {
  const directory = await scratch(context);
  const root = directoryOf({ a: fileOf(5000), b: fileOf(1), c: fileOf(9000, {}, [{ offset: 8500, length: 100 }]) });
  const whole = await writeImage(directory, root);
  assert.equal((await writeImage(directory, root, { chunkBytes: [1] })).digest, whole.digest);
});

test("another identity gives another UUID and nothing else", async (context) => {
  const directory = await scratch(context);
  const write = async (identity: string): Promise<Buffer> => {
    const root = sample();
    const files = filesOf(root);
    const imagePath = join(directory, "image");
    await writeErofs({ root, files, content: contentStream(files), imagePath, identity, signal });
    return readFile(imagePath);
  };
  const [one, other] = [await write("one"), await write("other")];
  const differ = [...one.keys()].filter((at) => one[at] !== other[at]);
  assert.ok(differ.length > 0);
  // The UUID, and the checksum at 1028 that covers it.
  for (const at of differ) assert.ok((at >= 1072 && at < 1088) || (at >= 1028 && at < 1032), `${at}`);
});

async function* stream(...chunks: Buffer[]): AsyncGenerator<Buffer> {
  yield* chunks;
}

const faults: [string, () => Parameters<typeof writeErofs>[0] extends infer O ? Partial<O> : never, RegExp][] = [
  ["content that ends early", () => ({ content: stream(Buffer.alloc(104_000)) }), /too early/],
  ["no content", () => ({ content: stream() }), /too early/],
  ["content that goes on", () => ({ content: stream(Buffer.alloc(8 << 20)) }), /goes on/],
  ["a file that is not listed", () => ({ files: filesOf(sample()).slice(1) }), /not in the tree|not listed/],
  ["a file that is not in the tree", () => ({ files: [...filesOf(sample()), fileOf(1)] }), /not in the tree/],
];
for (const [name, part, why] of faults) {
  test(`${name} is an error and leaves no file`, async (context) => {
    const directory = await scratch(context);
    const root = sample();
    const files = filesOf(root);
    await assert.rejects(
      writeErofs({
        root,
        files,
        content: contentStream(files),
        imagePath: join(directory, "image"),
        identity: "test",
        signal,
        ...part(),
      }),
      (error) => error instanceof RangeError && why.test(error.message),
    );
    assert.deepEqual(await readdir(directory), []);
  });
}

test("a stream that fails is closed, its error told, the file removed", async (context) => {
  const directory = await scratch(context);
  const root = sample();
  let closed = false;
  const content = (async function* () {
    try {
      yield Buffer.alloc(50_000);
      throw new Error("the source broke");
    } finally {
      closed = true;
    }
  })();
  const imagePath = join(directory, "image");
  await assert.rejects(
    writeErofs({ root, files: filesOf(root), content, imagePath, identity: "x", signal }),
    /the source broke/,
  );
  assert.ok(closed);
  assert.deepEqual(await readdir(directory), []);
});

test("an abort ends the writing, closes the stream and leaves nothing", async (context) => {
  const directory = await scratch(context);
  const root = directoryOf({ big: fileOf(1 << 30) });
  const controller = new AbortController();
  let closed = false;
  const content = (async function* () {
    try {
      for (let i = 0; i < 1024; i++) {
        if (i === 5) controller.abort(new Error("enough"));
        yield Buffer.alloc(1 << 20);
      }
    } finally {
      closed = true;
    }
  })();
  await assert.rejects(
    writeErofs({
      root,
      files: filesOf(root),
      content,
      imagePath: join(directory, "image"),
      identity: "x",
      signal: controller.signal,
    }),
    /enough/,
  );
  assert.ok(closed);
  assert.deepEqual(await readdir(directory), []);
});

test("a full disk is told as such and leaves nothing", async (context) => {
  const directory = await scratch(context);
  // A link, so that what is removed is the link.
  await symlink("/dev/full", join(directory, "image"));
  await assert.rejects(writeImage(directory, sample()), (error) => isServiceError(error, "ROOTFS_DISK_FULL"));
  assert.deepEqual(await readdir(directory), []);
});

const digest = "ab".repeat(32);
const placements: [string, ErofsFile, readonly ErofsDevice[], RegExp][] = [
  ["a device that is not there", placedFile(5000, 1, 0), [{ digest, blockCount: 9 }], /not in a device/],
  ["a block behind its device", placedFile(9000, 0, 8), [{ digest, blockCount: 9 }], /not in a device/],
  ["a block before its device", placedFile(9000, 0, -1), [{ digest, blockCount: 9 }], /not in a device/],
  ["no device at all", placedFile(9000, 0, 0), [], /not in a device/],
  [
    "a place and holes",
    { ...placedFile(9000, 0, 0), data: [{ offset: 0, length: 10 }] },
    [{ digest, blockCount: 9 }],
    /holes/,
  ],
  [
    "a place and no room for its tail",
    { ...placedFile(4097, 0, 0), metadata: metadataOf({ xattrs: new Map([["user.x", Buffer.alloc(4050)]]) }) },
    [{ digest, blockCount: 9 }],
    /no room/,
  ],
  ["a device that is no sha256", placedFile(9000, 0, 0), [{ digest: `${digest}00`, blockCount: 9 }], /no sha256/],
  ["a device without blocks", fileOf(0), [{ digest, blockCount: 0 }], /no blocks/],
];

function placedFile(sizeBytes: number, device: number, block: number): ErofsFile {
  return { ...fileOf(sizeBytes), place: { device, block } };
}

for (const [name, file, devices, why] of placements) {
  test(`${name} is an error and leaves no file`, async (context) => {
    const directory = await scratch(context);
    const imagePath = join(directory, "image");
    const writing = writeErofs({
      root: directoryOf({ file }),
      files: [file],
      devices,
      content: stream(),
      imagePath,
      identity: "x",
      signal,
    });
    await assert.rejects(writing, (error) => error instanceof RangeError && why.test(error.message));
    assert.deepEqual(await readdir(directory), []);
  });
}

test("devices that together are over what 32 bits can number are refused", async (context) => {
  const directory = await scratch(context);
  const file = placedFile(4096, 0, 0);
  const writing = writeErofs({
    root: directoryOf({ file }),
    files: [file],
    devices: [
      { digest, blockCount: 2 ** 31 },
      { digest, blockCount: 2 ** 31 },
    ],
    content: stream(),
    imagePath: join(directory, "image"),
    identity: "x",
    signal,
  });
  await assert.rejects(writing, (error) => isServiceError(error, "IMAGE_TOO_LARGE"));
  assert.deepEqual(await readdir(directory), []);
});

const twice = fileOf(1);
const loop = directoryOf({});
const refusals: [string, ErofsDirectory, "IMAGE_LAYER_INVALID" | "IMAGE_TOO_LARGE" | "RangeError"][] = [
  ["a name of 256 bytes", directoryOf({ ["n".repeat(256)]: fileOf(0) }), "IMAGE_LAYER_INVALID"],
  ["an empty name", directoryOf({ "": fileOf(0) }), "RangeError"],
  ["a name with a slash", directoryOf({ "a/b": fileOf(0) }), "RangeError"],
  ["a name with a NUL", directoryOf({ "a\0": fileOf(0) }), "RangeError"],
  ["the name ..", directoryOf({ "..": fileOf(0) }), "RangeError"],
  ["a name that is no byte string", directoryOf({ "\u0141": fileOf(0) }), "RangeError"],
  [
    "a link target of 4096 bytes",
    directoryOf({ l: { kind: "symlink", metadata: metadataOf(), target: "t".repeat(4096) } }),
    "IMAGE_LAYER_INVALID",
  ],
  ["an empty link target", directoryOf({ l: { kind: "symlink", metadata: metadataOf(), target: "" } }), "RangeError"],
  ["a mode with a type", directoryOf({ f: fileOf(0, { mode: 0o100644 }) }), "RangeError"],
  ["an owner over 32 bits", directoryOf({ f: fileOf(0, { uid: 2 ** 32 }) }), "RangeError"],
  [
    "a time over 64 bits of seconds",
    directoryOf({ f: fileOf(0, { mtimeNs: 2n ** 63n * 1_000_000_000n }) }),
    "RangeError",
  ],
  ["a negative size", directoryOf({ f: fileOf(-1, {}, []) }), "RangeError"],
  [
    "ranges that overlap",
    directoryOf({
      f: fileOf(9, {}, [
        { offset: 0, length: 5 },
        { offset: 4, length: 1 },
      ]),
    }),
    "RangeError",
  ],
  ["a range over the end", directoryOf({ f: fileOf(9, {}, [{ offset: 8, length: 2 }]) }), "RangeError"],
  ["a directory in two places", directoryOf({ a: loop, b: loop }), "RangeError"],
  [
    "device numbers over Linux's",
    directoryOf({ d: { kind: "char", metadata: metadataOf(), deviceMajor: 4096, deviceMinor: 0 } }),
    "IMAGE_LAYER_INVALID",
  ],
  [
    "an attribute of a name space that EROFS lacks",
    directoryOf({ f: fileOf(0, { xattrs: new Map([["btrfs.compression", Buffer.alloc(1)]]) }) }),
    "IMAGE_LAYER_INVALID",
  ],
  [
    "an attribute name of 256 bytes",
    directoryOf({ f: fileOf(0, { xattrs: new Map([[`user.${"n".repeat(256)}`, Buffer.alloc(1)]]) }) }),
    "IMAGE_LAYER_INVALID",
  ],
  [
    "an attribute of 64 KiB",
    directoryOf({ f: fileOf(0, { xattrs: new Map([["user.v", Buffer.alloc(65_536)]]) }) }),
    "IMAGE_TOO_LARGE",
  ],
  [
    "more attributes than an inode can count",
    directoryOf({
      f: fileOf(0, {
        xattrs: new Map(Array.from({ length: 5 }, (_, i) => [`user.${i}`, Buffer.alloc(60_000, i)] as const)),
      }),
    }),
    "IMAGE_TOO_LARGE",
  ],
  ["an image over 16 TiB", directoryOf({ f: fileOf(2 ** 44) }), "IMAGE_TOO_LARGE"],
];
for (const [name, root, reason] of refusals) {
  test(`${name} is refused before anything is written`, async (context) => {
    const directory = await scratch(context);
    const files = filesOf(root);
    const writing = writeErofs({
      root,
      files,
      content: stream(),
      imagePath: join(directory, "image"),
      identity: "x",
      signal,
    });
    await assert.rejects(writing, (error) =>
      reason === "RangeError" ? error instanceof RangeError : isServiceError(error, reason),
    );
    assert.deepEqual(await readdir(directory), []);
  });
}

test("a file listed twice is refused", async (context) => {
  const directory = await scratch(context);
  const writing = writeErofs({
    root: directoryOf({ twice }),
    files: [twice, twice],
    content: stream(),
    imagePath: join(directory, "image"),
    identity: "x",
    signal,
  });
  await assert.rejects(writing, /listed twice/);
});
