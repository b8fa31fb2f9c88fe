import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { isServiceError } from "@unkey/base";
import { fromUtf8 } from "../byte-string.ts";
import { digestOf } from "../digest.ts";
import { defaultImageLimits } from "../layer/limits.ts";
import { assembleLayers } from "../testing/assemble-layers.ts";
import { attachments, checkErofs, needsErofsUtils, needsMount, seenIn, withImage } from "../testing/built-image.ts";
import { paxEntry, type TarFixture, tarOf } from "../testing/tar-fixture.ts";
import { unpackBytes } from "../testing/unpack-bytes.ts";

const capability = Buffer.alloc(20);
capability.writeUInt32LE(0x02000001, 0);
capability.writeUInt32LE(0xff80, 4);

const lower: TarFixture[] = [
  { name: "./", type: "directory", mode: 0o751, uid: 3, gid: 4, mtimeNs: 1_600_000_000_000_000_001n },
  { name: "etc/", type: "directory" },
  { name: "etc/passwd", content: "root:x:0:0::/root:/bin/sh\napp:x:100000:70000::/srv:/bin/sh\n" },
  { name: "etc/group", content: "app:x:70000:\nextra:x:70001:app\n" },
  { name: "old", content: "to be hidden" },
  {
    name: "d/",
    type: "directory",
    mode: 0o1777,
    uid: 5,
    gid: 6,
    mtimeNs: 1_500_000_000_123_456_789n,
    xattrs: new Map([["user.dir", Buffer.from("v")]]),
  },
  { name: "d/keep", content: "kept" },
  { name: "d/gone", content: "gone" },
];
const upper: TarFixture[] = [
  { name: ".wh.old" },
  { name: "d/.wh.gone" },
  {
    name: "bin/tool",
    content: Buffer.alloc(70_000, "tool"),
    mode: 0o4755,
    uid: 100_000,
    gid: 70_000,
    xattrs: new Map([
      ["security.capability", capability],
      ["user.bin", Buffer.from([0, 255, 61, 10])],
    ]),
  },
  { name: "bin/same", type: "hardlink", linkName: "bin/tool" },
  { name: "unreadable", content: "secret", mode: 0 },
  { name: "closed/", type: "directory", mode: 0 },
  { name: "closed/in", content: "inside" },
  { name: "abs", type: "symlink", linkName: "/etc/passwd", mtimeNs: 1_400_000_000_000_000_000n },
  { name: "climb", type: "symlink", linkName: "../../../../../../etc/shadow" },
  { name: "null", type: "char", deviceMajor: 1, deviceMinor: 3, mode: 0o666 },
  { name: "disk", type: "block", deviceMajor: 259, deviceMinor: 300, mode: 0o600 },
  { name: "pipe", type: "fifo", mode: 0o640 },
  { name: "grüße\n*", content: "names are bytes" },
  { name: `${"long".repeat(40)}/${"name".repeat(50)}`, content: "long" },
  { name: "-rf", content: "not an option" },
];

const { signal } = new AbortController();

async function scratch(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "oci-rootfs-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Unpacks an archive into a layer directory of `scratch`. */
async function unpacked(parent: string, archive: Buffer) {
  const directory = await mkdtemp(join(parent, "layer-"));
  const layer = { digest: digestOf(archive), diffId: digestOf(archive), directory };
  await unpackBytes(archive, { ...layer, limits: defaultImageLimits });
  return layer;
}

const rest = {
  format: "erofs",
  identity: "test",
  limits: defaultImageLimits,
  policy: { setuid: "keep" },
  signal,
} as const;

for (const [form, attach] of attachments) {
  test(`an image ${form} holds exactly what its layers say, as the kernel reads it`, {
    skip: needsMount(),
  }, async () => {
    const layers = [
      { archive: tarOf(lower), stored: gzipSync(tarOf(lower)) },
      { archive: tarOf(upper), stored: zstdCompressSync(tarOf(upper)) },
    ];
    await withImage(layers, { attach }, async ({ imagePath, devicePaths, passwd, group }) => {
      checkErofs(imagePath, devicePaths);
      const found: Record<string, string> = {};
      for (const [path, { entry, content }] of await seenIn(imagePath, { devicePaths })) {
        const { type, mode, uid, gid, mtimeNs, deviceMajor, deviceMinor, linkName, xattrs, sizeBytes } = entry;
        const attributes = [...xattrs].map(([name, value]) => `${name}=${value.toString("hex")}`).sort();
        const what = [type, mode.toString(8), uid, gid, mtimeNs, `${deviceMajor}:${deviceMinor}`, linkName, sizeBytes];
        found[path] = [
          ...what,
          ...attributes,
          type === "file" ? createHash("sha256").update(content).digest("hex") : "",
        ].join(" ");
      }
      const time = "1700000000000000000";
      const sum = (content: string | Buffer): string => createHash("sha256").update(content).digest("hex");
      const plain = (content: string, mode = "644"): string =>
        `file ${mode} 0 0 ${time} 0:0  ${content.length} ${sum(content)}`;
      const tool = Buffer.alloc(70_000, "tool");

      const long = "long".repeat(40);
      assert.deepEqual(found, {
        "": "directory 751 3 4 1600000000000000001 0:0  0 ",
        "-rf": plain("not an option"),
        abs: "symlink 777 0 0 1400000000000000000 0:0 /etc/passwd 0 ",
        bin: "directory 755 0 0 0 0:0  0 ",
        "bin/same": `file 4755 100000 70000 ${time} 0:0  70000 security.capability=${capability.toString("hex")} user.bin=00ff3d0a ${sum(tool)}`,
        "bin/tool": `hardlink 4755 100000 70000 ${time} 0:0 ./bin/same 0 `,
        climb: `symlink 777 0 0 ${time} 0:0 ../../../../../../etc/shadow 0 `,
        closed: `directory 0 0 0 ${time} 0:0  0 `,
        "closed/in": plain("inside"),
        d: "directory 1777 5 6 1500000000123456789 0:0  0 user.dir=76 ",
        "d/keep": plain("kept"),
        disk: `block 600 0 0 ${time} 259:300  0 `,
        etc: `directory 755 0 0 ${time} 0:0  0 `,
        "etc/group": plain(String(lower[3]?.content)),
        "etc/passwd": plain(String(lower[2]?.content)),
        [fromUtf8("grüße\n*")]: plain("names are bytes"),
        [long]: "directory 755 0 0 0 0:0  0 ",
        [`${long}/${"name".repeat(50)}`]: plain("long"),
        null: `char 666 0 0 ${time} 1:3  0 `,
        pipe: `fifo 640 0 0 ${time} 0:0  0 `,
        unreadable: plain("secret", "0"),
      });

      assert.equal(passwd, lower[2]?.content);
      assert.equal(group, lower[3]?.content);
    });
  });

  test(`the same layers give the same bytes ${form}, however they are compressed`, async () => {
    const digests = new Set<string>();
    for (const compress of [gzipSync, zstdCompressSync, (bytes: Buffer) => bytes]) {
      const layers = [lower, upper].map((entries) => ({ archive: tarOf(entries), stored: compress(tarOf(entries)) }));
      await withImage(layers, { attach }, async ({ imagePath, devicePaths, sizeBytes }) => {
        const bytes = await readFile(imagePath);
        assert.equal(bytes.length, sizeBytes);
        const contents = await Promise.all(devicePaths.map((path) => readFile(path)));
        digests.add([bytes, ...contents].map((each) => digestOf(each)).join());
      });
    }
    assert.equal(digests.size, 1);
  });

  test(`files of every size, with and without attributes, links and holes between layers ${form}`, {
    skip: needsMount(),
  }, async () => {
    const sizes = [0, 1, 2047, 2048, 2049, 4095].flatMap((tail) => [tail, 4096 + tail, 3 * 4096 + tail]);
    const bytes = (size: number, salt: string): Buffer => Buffer.alloc(size, `${salt} ${size} `);
    const wide = new Map([["user.wide", Buffer.alloc(2500, "w")]]);
    const holes = (name: string): Buffer =>
      paxEntry(
        [
          ["GNU.sparse.size", "100000"],
          ["GNU.sparse.map", "5000,3000,70000,9"],
        ],
        { name, content: bytes(3009, "h") },
      );
    const layers: (TarFixture | Buffer)[][] = [
      [
        ...sizes.map((size) => ({ name: `low/${size}`, content: bytes(size, "low") })),
        ...sizes.map((size) => ({ name: `wide/${size}`, content: bytes(size, "wide"), xattrs: wide })),
        holes("low/holes"),
        { name: "low/9000", content: bytes(9000, "low") },
      ],
      [
        // A link to what a lower layer has, and that file again with other metadata, whole as an archive has it.
        ...sizes.map((size) => ({ name: `link/${size}`, type: "hardlink" as const, linkName: `low/${size}` })),
        ...sizes.map((size) => ({ name: `wide/${size}`, content: bytes(size, "wide"), mode: 0o600, uid: 70_000 })),
        ...sizes.map((size) => ({
          name: `high/${size}`,
          content: bytes(size, "high"),
          xattrs: new Map([["user.a", Buffer.from("a")]]),
        })),
        holes("high/holes"),
      ],
      [
        { name: ".wh.high" },
        { name: "high/1", content: bytes(12_288, "new") },
        { name: "link/holes", type: "hardlink", linkName: "low/holes" },
      ],
    ];
    const expected = new Map<string, string>();
    const sum = (content: Buffer): string => createHash("sha256").update(content).digest("hex");
    for (const size of sizes) {
      expected.set(`low/${size}`, `644 0 ${sum(bytes(size, "low"))}`);
      expected.set(`link/${size}`, `644 0 ${sum(bytes(size, "low"))}`);
      expected.set(`wide/${size}`, `600 70000 ${sum(bytes(size, "wide"))}`);
    }
    expected.set("low/9000", `644 0 ${sum(bytes(9000, "low"))}`);
    expected.set("high/1", `644 0 ${sum(bytes(12_288, "new"))}`);
    const sparse = Buffer.alloc(100_000);
    bytes(3009, "h").copy(sparse, 5000, 0, 3000);
    bytes(3009, "h").copy(sparse, 70_000, 3000);
    for (const name of ["low/holes", "link/holes"]) expected.set(name, `644 0 ${sum(sparse)}`);
    const archives = layers.map((entries) => ({ archive: tarOf(entries) }));
    const options = { attach, wanted: (directory: string) => /^low(\/|$)/.test(directory) };
    await withImage(archives, options, async ({ imagePath, devicePaths, captured }) => {
      checkErofs(imagePath, devicePaths);
      const seen = await seenIn(imagePath, { devicePaths });
      const found = new Map<string, string>();
      for (const [path, { entry, content }] of seen) {
        if (entry.type === "directory") continue;
        const first = entry.type === "hardlink" ? seen.get(entry.linkName.slice(2))?.content : content;
        found.set(path, `${entry.mode.toString(8)} ${entry.uid} ${sum(first ?? Buffer.alloc(0))}`);
      }
      assert.deepEqual(Object.fromEntries(found), Object.fromEntries(expected));
      for (const [path, content] of captured) assert.equal(`644 0 ${sum(content)}`, expected.get(path), path);
      assert.equal(captured.size, sizes.length + 2);
    });
  });
}

test("a layer's content is attached as it is: the image has none of it", async () => {
  const archive = tarOf([
    { name: "big", content: Buffer.alloc(5 << 20, "b") },
    { name: "small", content: "s" },
  ]);
  await withImage([{ archive }], { attach: () => true }, async ({ devicePaths, sizeBytes }) => {
    assert.equal((await stat(devicePaths[0] ?? "")).size, 5 << 20);
    assert.ok(sizeBytes < 32_768);
  });
});

test("sixteen layers are devices", { skip: needsMount() }, async () => {
  const layers = Array.from({ length: 16 }, (_, i) => ({
    archive: tarOf([{ name: `f${i}`, content: Buffer.alloc(5000 + i, `${i}`) }]),
  }));
  await withImage(layers, { attach: () => true }, async ({ imagePath, devicePaths }) => {
    assert.equal(devicePaths.length, 16);
    checkErofs(imagePath, devicePaths);
    const seen = await seenIn(imagePath, { devicePaths });
    for (let i = 0; i < 16; i++) assert.ok(seen.get(`f${i}`)?.content.equals(Buffer.alloc(5000 + i, `${i}`)));
  });
});

test("an image without files still gives a file system", { skip: needsErofsUtils }, () =>
  withImage([], {}, ({ imagePath, passwd }) => {
    checkErofs(imagePath);
    assert.equal(passwd, "");
  }),
);

test("account files behind links inside the tree are found, those behind links that lead nowhere are not", () =>
  withImage(
    [
      {
        archive: tarOf([
          { name: "etc/passwd", type: "symlink", linkName: "/usr/lib/passwd" },
          { name: "etc/group", type: "symlink", linkName: "../../../../etc/shadow" },
          { name: "usr/lib/passwd", content: "root:x:0:0::/root:/bin/sh\n" },
        ]),
      },
    ],
    {},
    ({ passwd, group }) => {
      assert.equal(passwd, "root:x:0:0::/root:/bin/sh\n");
      assert.equal(group, "");
    },
  ));

test("an account file of an unlikely size is refused", async () => {
  const archive = tarOf([{ name: "etc/passwd", content: "x".repeat(600 * 1024) }]);
  await assert.rejects(
    withImage([{ archive }], {}, () => {}),
    (error) => isServiceError(error, "IMAGE_TOO_LARGE") && /\/etc\/passwd/.test(error.message),
  );
});

test("wanted files are handed out by every name that was wanted, holes as zeros", () =>
  withImage(
    [
      {
        archive: tarOf([
          { name: "var/a", content: "old" },
          { name: "var/b", content: "kept" },
          { name: "c", type: "hardlink", linkName: "var/b" },
        ]),
      },
      {
        archive: tarOf([
          { name: "var/a", content: "new" },
          paxEntry(
            [
              ["GNU.sparse.size", "8"],
              ["GNU.sparse.map", "4,2"],
            ],
            { name: "var/s", content: "ab" },
          ),
        ]),
      },
    ],
    { wanted: (directory, _, sizeBytes) => /^var(\/|$)/.test(directory) && sizeBytes < 100 },
    ({ captured }) => {
      assert.deepEqual(
        [...captured].map(([path, content]) => [path, content.toString("latin1")]),
        [
          ["var/a", "new"],
          ["var/b", "kept"],
          ["var/s", "\0\0\0\0ab\0\0"],
        ],
      );
    },
  ));

test("only a layer that was unpacked to its end has an index", async (context) => {
  const directory = await scratch(context);
  const archive = tarOf(upper);
  const layer = { digest: digestOf(archive), diffId: digestOf(archive), directory };
  const cut = unpackBytes(archive.subarray(0, -2000), { ...layer, limits: defaultImageLimits });
  await assert.rejects(cut, (error) => isServiceError(error, "IMAGE_LAYER_INVALID"));
  assert.ok(!(await readdir(directory)).includes("index"));
});

test("an abort ends assembly and leaves no image", async (context) => {
  const directory = await scratch(context);
  const layer = await unpacked(directory, tarOf([{ name: "a", content: Buffer.alloc(9_000_000, "a") }]));
  const controller = new AbortController();
  const assembling = assembleLayers({
    ...rest,
    layers: [layer],
    imagePath: join(directory, "image"),
    scratchDirectory: directory,
    signal: controller.signal,
    onBytes: () => controller.abort(new Error("enough")),
  });
  await assert.rejects(assembling, /enough/);
  assert.ok(!(await readdir(directory)).includes("image"));
});

const isDamaged = (error: unknown): boolean => isServiceError(error, "LAYER_CACHE_DAMAGED");

test("a layer directory that was cut short, wherever, is noticed", async (context) => {
  const directory = await scratch(context);
  const archive = tarOf(upper);
  const whole = await unpacked(directory, archive);
  const options = { ...rest, imagePath: join(directory, "image"), scratchDirectory: directory };
  const indexBytes = (await readFile(join(whole.directory, "index"))).length;
  for (const length of [0, 4, 8, 40, 90, Math.floor(indexBytes / 2), indexBytes - 30, indexBytes - 1]) {
    const layer = await unpacked(directory, archive);
    await truncate(join(layer.directory, "index"), length);
    await assert.rejects(assembleLayers({ ...options, layers: [layer] }), isDamaged, `cut to ${length}`);
  }
  for (const name of ["content", "tails"]) {
    const layer = await unpacked(directory, archive);
    await truncate(join(layer.directory, name), 7);
    await assert.rejects(assembleLayers({ ...options, layers: [layer] }), isDamaged);
  }
});

test("a changed byte of an index and an index of another layer are noticed", async (context) => {
  const directory = await scratch(context);
  const options = { ...rest, imagePath: join(directory, "image"), scratchDirectory: directory };
  const layer = await unpacked(directory, tarOf(upper));
  const other = await unpacked(directory, tarOf(lower));
  await assert.rejects(assembleLayers({ ...options, layers: [{ ...layer, directory: other.directory }] }), isDamaged);
  const path = join(layer.directory, "index");
  const bytes = await readFile(path);
  for (let at = 8; at < bytes.length; at += 37) {
    const changed = Buffer.from(bytes);
    changed.writeUInt8(changed.readUInt8(at) ^ 0x10, at);
    await writeFile(path, changed);
    await assert.rejects(assembleLayers({ ...options, layers: [layer] }), isDamaged, `byte ${at}`);
  }
});

test("forty thousand entries come out of an index as they went in", async (context) => {
  const directory = await scratch(context);
  const entries = Array.from({ length: 40_000 }, (_, i) => ({
    name: `usr/d${i % 500}/file-${i}`,
    content: i % 7 === 0 ? "x" : "",
  }));
  const layer = await unpacked(directory, tarOf(entries));
  const wanted = await assembleLayers({
    ...rest,
    layers: [layer],
    imagePath: join(directory, "image"),
    scratchDirectory: directory,
    wanted: (_, name) => name.endsWith("7"),
  });
  const expected = entries.filter(({ name }) => name.endsWith("7"));
  assert.equal(wanted.captured.size, expected.length);
  for (const { name, content } of expected) assert.equal(wanted.captured.get(name)?.toString(), content);
});
