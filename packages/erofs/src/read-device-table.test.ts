import assert from "node:assert/strict";
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { superblock, superblockChecksum } from "./format.ts";
import { readDeviceTable } from "./read-device-table.ts";

const digests = ["11", "ab"].map((byte) => byte.repeat(32));

/** The first block of an image of 7 blocks with devices of 5 and 9. */
function block(change: (bytes: Buffer) => void = () => {}): Buffer {
  const bytes = superblock({
    rootNid: 36,
    inodeCount: 1,
    compactMtimeNs: 0n,
    blockCount: 7,
    sharedXattrBlock: 0,
    uuid: Buffer.alloc(16),
    hasChunks: false,
    devices: [
      { digest: digests[0] ?? "", blockCount: 5, mappedBlock: 7 },
      { digest: digests[1] ?? "", blockCount: 9, mappedBlock: 12 },
    ],
  });
  change(bytes);
  bytes.writeUInt32LE(0, 1028);
  bytes.writeUInt32LE(superblockChecksum(bytes), 1028);
  return bytes;
}

async function fileOf(context: TestContext, bytes: Buffer): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "erofs-table-"));
  context.after(() => rm(directory, { recursive: true, force: true }));
  const path = join(directory, "image");
  await writeFile(path, bytes);
  return path;
}

test("devices are read in their order", async (context) => {
  assert.deepEqual(await readDeviceTable(await fileOf(context, block())), [
    { digest: digests[0], blockCount: 5 },
    { digest: digests[1], blockCount: 9 },
  ]);
});

const slot = 1152;
const changes: [string, (bytes: Buffer) => void, RegExp][] = [
  ["another magic number", (bytes) => bytes.writeUInt32LE(0xef53, 1024), /magic/],
  ["a file system without checksum", (bytes) => bytes.writeUInt32LE(2, 1032), /checksum/],
  ["blocks of another size", (bytes) => bytes.writeUInt8(9, 1036), /not of 4096 bytes/],
  ["17 devices", (bytes) => bytes.writeUInt16LE(17, 1024 + 86), /17 devices/],
  ["65,535 devices", (bytes) => bytes.writeUInt16LE(65_535, 1024 + 86), /65535 devices/],
  ["a table over the superblock", (bytes) => bytes.writeUInt16LE(8, 1024 + 88), /first block/],
  ["a table at the end of the block", (bytes) => bytes.writeUInt16LE(31, 1024 + 88), /first block/],
  ["a table far behind", (bytes) => bytes.writeUInt16LE(65_535, 1024 + 88), /first block/],
  ["an empty tag", (bytes) => bytes.fill(0, slot, slot + 64), /tag/],
  ["a tag with a path", (bytes) => bytes.write("/../../etc/passwd", slot), /tag/],
  ["a tag in capitals", (bytes) => bytes.fill("A", slot + 128, slot + 192), /tag/],
  ["a device without blocks", (bytes) => bytes.writeUInt32LE(0, slot + 64), /mapped/],
  ["a device mapped over the image", (bytes) => bytes.writeUInt32LE(6, slot + 68), /mapped/],
  ["a device mapped over another", (bytes) => bytes.writeUInt32LE(11, slot + 128 + 68), /mapped/],
  ["blocks over the numbers there are", (bytes) => bytes.writeUInt32LE(0xffff_ffff, slot + 64), /mapped/],
];
for (const [name, change, why] of changes) {
  test(`${name} is an error`, async (context) => {
    await assert.rejects(readDeviceTable(await fileOf(context, block(change))), why);
  });
}

test("no changed byte of the superblock's block goes unnoticed", async (context) => {
  const path = await fileOf(context, block());
  for (let at = 1024; at < 4096; at += 13) {
    const bytes = block();
    bytes.writeUInt8(bytes.readUInt8(at) ^ 0x20, at);
    await writeFile(path, bytes);
    await assert.rejects(readDeviceTable(path), /EROFS image/, `byte ${at}`);
  }
});

test("a file shorter than a block is no image", async (context) => {
  const path = await fileOf(context, block());
  for (const length of [4095, 1152, 1000, 0]) {
    await truncate(path, length);
    await assert.rejects(readDeviceTable(path), /shorter/);
  }
});
