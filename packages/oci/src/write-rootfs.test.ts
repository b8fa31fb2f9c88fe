import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { isServiceError } from "@unkey/base";
import { fromUtf8 } from "./byte-string.ts";
import { digestOf } from "./digest.ts";
import type { LayerBlob } from "./layer/layer-stream.ts";
import { defaultImageLimits, type ImageLimits } from "./layer/limits.ts";
import { TarReader } from "./tar/tar-reader.ts";
import { layerOf, type TarFixture, tarOf } from "./testing/tar-fixture.ts";
import { writeRootfs } from "./write-rootfs.ts";

const needs =
  process.getuid?.() !== 0
    ? "root is needed to set owners and make devices"
    : ["/usr/bin/mkfs.erofs", "/usr/bin/fsck.erofs"].every((path) => existsSync(path))
      ? false
      : "erofs-utils is not installed";

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

async function scratch(context: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "oci-rootfs-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function write(
  directory: string,
  layers: readonly LayerBlob[],
  name = "image",
  limits: Partial<ImageLimits> = {},
  signal = new AbortController().signal,
) {
  const imagePath = join(directory, name);
  const facts = await writeRootfs({
    layers,
    scratchDirectory: directory,
    imagePath,
    identity: "test",
    limits: { ...defaultImageLimits, ...limits },
    signal,
  });
  return { facts, imagePath };
}

/** What the kernel sees in an image, read by GNU tar from a mount that ends with its own namespace. */
async function contents(imagePath: string): Promise<Record<string, string>> {
  const script =
    'mount -t erofs -o loop,ro "$0" /mnt && exec tar -C /mnt --format=pax --sort=name --numeric-owner --xattrs --xattrs-include="*" -cf - .';
  const archive = execFileSync("unshare", ["--mount", "sh", "-c", script, imagePath], {
    maxBuffer: 1 << 26,
    env: { ...process.env, LC_ALL: "C" },
  });
  const reader = new TarReader(
    (async function* () {
      yield archive;
    })(),
  );
  const found: Record<string, string> = {};
  for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) {
    const hash = createHash("sha256");
    for await (const chunk of reader.content()) hash.update(chunk);
    const { type, mode, uid, gid, mtimeNs, deviceMajor, deviceMinor, linkName, xattrs, sizeBytes } = entry;
    const attributes = [...xattrs].map(([name, value]) => `${name}=${value.toString("hex")}`).sort();
    found[entry.name] = [
      type,
      mode.toString(8),
      uid,
      gid,
      mtimeNs,
      `${deviceMajor}:${deviceMinor}`,
      linkName,
      sizeBytes,
      ...attributes,
      type === "file" ? hash.digest("hex") : "",
    ].join(" ");
  }
  return found;
}

function canMount(): false | string {
  if (needs !== false) return needs;
  try {
    execFileSync(
      "unshare",
      ["--mount", "sh", "-c", "modprobe -q erofs; grep -qw erofs /proc/filesystems && losetup -f"],
      { stdio: "pipe" },
    );
    return false;
  } catch {
    return "the kernel cannot mount EROFS from a loop device";
  }
}

test("an image holds exactly what its layers say, as the kernel reads it", { skip: canMount() }, async (context) => {
  const directory = await scratch(context);
  const layers = [
    await layerOf(join(directory, "0"), tarOf(lower), gzipSync(tarOf(lower))),
    await layerOf(join(directory, "1"), tarOf(upper), zstdCompressSync(tarOf(upper))),
  ];
  const { imagePath, facts } = await write(directory, layers);
  execFileSync("fsck.erofs", [imagePath], { stdio: "pipe" });

  const time = "1700000000000000000";
  const sum = (content: string | Buffer): string => createHash("sha256").update(content).digest("hex");
  const plain = (content: string, mode = "644"): string =>
    `file ${mode} 0 0 ${time} 0:0  ${content.length} ${sum(content)}`;
  const tool = Buffer.alloc(70_000, "tool");
  const seen = await contents(imagePath);
  const long = `${"long".repeat(40)}/`;
  assert.deepEqual(seen, {
    "./": "directory 751 3 4 1600000000000000001 0:0  0 ",
    "./-rf": plain("not an option"),
    "./abs": "symlink 777 0 0 1400000000000000000 0:0 /etc/passwd 0 ",
    "./bin/": "directory 755 0 0 0 0:0  0 ",
    "./bin/same": `file 4755 100000 70000 ${time} 0:0  70000 security.capability=${capability.toString("hex")} user.bin=00ff3d0a ${sum(tool)}`,
    "./bin/tool": `hardlink 4755 100000 70000 ${time} 0:0 ./bin/same 0 `,
    "./climb": `symlink 777 0 0 ${time} 0:0 ../../../../../../etc/shadow 0 `,
    "./closed/": `directory 0 0 0 ${time} 0:0  0 `,
    "./closed/in": plain("inside"),
    "./d/": "directory 1777 5 6 1500000000123456789 0:0  0 user.dir=76 ",
    "./d/keep": plain("kept"),
    "./disk": `block 600 0 0 ${time} 259:300  0 `,
    "./etc/": `directory 755 0 0 ${time} 0:0  0 `,
    "./etc/group": plain(String(lower[3]?.content)),
    "./etc/passwd": plain(String(lower[2]?.content)),
    [fromUtf8("./grüße\n*")]: plain("names are bytes"),
    [`./${long}`]: "directory 755 0 0 0 0:0  0 ",
    [`./${long}${"name".repeat(50)}`]: plain("long"),
    "./null": `char 666 0 0 ${time} 1:3  0 `,
    "./pipe": `fifo 640 0 0 ${time} 0:0  0 `,
    "./unreadable": plain("secret", "0"),
  });
  assert.equal(facts.passwd, lower[2]?.content);
  assert.equal(facts.group, lower[3]?.content);
  assert.deepEqual((await readdir(directory)).sort(), ["0", "1", "image"], "scratch is removed");
});

test("the same layers give the same bytes, however they are compressed", { skip: needs }, async (context) => {
  const directory = await scratch(context);
  const digests = new Set<string>();
  for (const [name, compress] of [
    ["gzip", gzipSync],
    ["zstd", zstdCompressSync],
    ["none", (bytes: Buffer) => bytes],
  ] as const) {
    const layers = [
      await layerOf(join(directory, `${name}0`), tarOf(lower), compress(tarOf(lower))),
      await layerOf(join(directory, `${name}1`), tarOf(upper), compress(tarOf(upper))),
    ];
    const { imagePath } = await write(directory, layers, name);
    digests.add(digestOf(await readFile(imagePath)));
    assert.ok((await stat(imagePath)).size > 70_000);
  }
  assert.equal(digests.size, 1);
});

test("names that are not UTF-8 arrive as they are", { skip: canMount() }, async (context) => {
  const directory = await scratch(context);
  const archive = tarOf([
    { name: "short-@", content: "1" },
    { name: `${"x".repeat(120)}-@`, content: "2" },
    { name: "link", type: "symlink", linkName: `${"y".repeat(120)}\xff` },
  ]);
  for (let at = archive.indexOf("-@"); at >= 0; at = archive.indexOf("-@", at + 1)) archive.writeUInt8(0xff, at + 1);
  // The checksum of the short name's header changes with its bytes.
  archive.fill(0x20, 148, 156);
  archive.write(
    `${archive
      .subarray(0, 512)
      .reduce((total, byte) => total + byte, 0)
      .toString(8)
      .padStart(6, "0")}\0 `,
    148,
  );
  const { imagePath } = await write(directory, [await layerOf(join(directory, "0"), archive)]);
  const names = Object.keys(await contents(imagePath));
  assert.ok(names.includes("./short-\xff"), JSON.stringify(names));
  assert.ok(names.includes(`./${"x".repeat(120)}-\xff`), JSON.stringify(names));
});

test("an image without files still gives a file system", { skip: needs }, async (context) => {
  const directory = await scratch(context);
  const { imagePath, facts } = await write(directory, []);
  execFileSync("fsck.erofs", [imagePath], { stdio: "pipe" });
  assert.equal(facts.passwd, "");
});

const damaged: [string, (archive: Buffer) => Buffer, RegExp][] = [
  ["gzip cut short", (archive) => gzipSync(archive).subarray(0, -20), /damaged|middle|digest/],
  [
    "gzip with a wrong checksum",
    (archive) => {
      const bytes = gzipSync(archive);
      bytes.writeUInt8(bytes.readUInt8(bytes.length - 6) ^ 1, bytes.length - 6);
      return bytes;
    },
    /damaged/,
  ],
  ["zstd cut short", (archive) => zstdCompressSync(archive).subarray(0, -20), /layer sha256:/],
  [
    "zstd damaged in the middle",
    (archive) => {
      const bytes = zstdCompressSync(archive);
      bytes.fill(0xaa, 40, 60);
      return bytes;
    },
    /layer sha256:/,
  ],
  ["another archive than the config names", () => tarOf([{ name: "other" }]), /does not unpack to the digest/],
  [
    "data after the archive's end",
    (archive) => Buffer.concat([archive, Buffer.from("hidden")]),
    /does not unpack to the digest/,
  ],
  ["no bytes at all", () => Buffer.alloc(0), /does not unpack to the digest/],
];
for (const [name, store, why] of damaged) {
  test(`hostile: a layer of ${name} is refused`, async (context) => {
    const directory = await scratch(context);
    const layer = await layerOf(join(directory, "0"), tarOf(upper), store(tarOf(upper)));
    await assert.rejects(
      write(directory, [layer]),
      (error) => isServiceError(error, "IMAGE_LAYER_INVALID") && why.test(error.message),
    );
  });
}

const bombs: [string, Buffer, Partial<ImageLimits>][] = [
  ["ratio", Buffer.alloc(80 * 1024 * 1024), {}],
  ["size", tarOf([{ name: "a", content: Buffer.alloc(1 << 20) }]), { uncompressedBytes: 1 << 19 }],
];
for (const [name, archive, limits] of bombs) {
  test(`hostile: a bomb by ${name} is refused`, async (context) => {
    const directory = await scratch(context);
    const layer = await layerOf(join(directory, "0"), archive, gzipSync(archive, { level: 9 }));
    await assert.rejects(write(directory, [layer], "image", limits), (error) =>
      isServiceError(error, "IMAGE_TOO_LARGE"),
    );
  });
}

test("an abort ends the tools and leaves nothing", { skip: needs }, async (context) => {
  const directory = await scratch(context);
  const layer = await layerOf(
    join(directory, "0"),
    tarOf(Array.from({ length: 2000 }, (_, i) => ({ name: `f${i}`, content: "x".repeat(2000) }))),
  );
  const controller = new AbortController();
  const writing = writeRootfs({
    layers: [layer],
    scratchDirectory: directory,
    imagePath: join(directory, "image"),
    identity: "test",
    limits: defaultImageLimits,
    signal: controller.signal,
    onBytes: () => controller.abort(new Error("enough")),
  });
  await assert.rejects(writing, /enough/);
  assert.deepEqual(await readdir(directory), ["0"]);
});
