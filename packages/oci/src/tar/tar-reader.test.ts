import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import { InvalidInput } from "../invalid-input.ts";
import { tarOf } from "../testing/tar-fixture.ts";
import { type TarEntry, TarReader } from "./tar-reader.ts";
import { type TarHeader, tarEnd, tarHeader } from "./tar-writer.ts";

async function* inChunks(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield Buffer.from(bytes.subarray(at, at + size));
}

async function readAll(archive: Buffer, chunkBytes = 777): Promise<{ entry: TarEntry; content: Buffer }[]> {
  const reader = new TarReader(inChunks(archive, chunkBytes));
  const found: { entry: TarEntry; content: Buffer }[] = [];
  for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) {
    const parts: Buffer[] = [];
    for await (const chunk of reader.content()) parts.push(Buffer.from(chunk));
    found.push({ entry, content: Buffer.concat(parts) });
  }
  return found;
}

const anyName = fc.stringMatching(/^[a-z\xe9\xff/. ]{1,300}$/).filter((name) => !name.endsWith("/"));
const anyHeader = fc.record<TarHeader>(
  {
    type: fc.constantFrom("file", "hardlink", "symlink", "char", "block", "directory", "fifo"),
    name: anyName,
    linkName: fc.oneof(fc.constant(""), anyName),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.integer({ min: 0, max: 0xfffffffe }),
    gid: fc.integer({ min: 0, max: 0xfffffffe }),
    mtimeNs: fc.bigInt({ min: -(10n ** 18n), max: 10n ** 20n }),
    sizeBytes: fc.constant(0),
    deviceMajor: fc.integer({ min: 0, max: 0xfff }),
    deviceMinor: fc.integer({ min: 0, max: 0xfffff }),
    xattrs: fc
      .array(fc.tuple(fc.stringMatching(/^[a-z.]{1,20}$/), fc.uint8Array({ maxLength: 40 })), { maxLength: 3 })
      .map((pairs) => new Map(pairs.map(([name, value]) => [name, Buffer.from(value)]))),
  },
  { noNullPrototype: true },
);

test("what the writer writes the reader reads back, byte for byte, whatever the chunking", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(anyHeader, { maxLength: 8 }),
      fc.integer({ min: 1, max: 3000 }),
      async (headers, chunk) => {
        const archive = Buffer.concat([...headers.map(tarHeader), tarEnd()]);
        const entries = (await readAll(archive, chunk)).map(({ entry }) => ({ ...entry, ordinal: undefined }));
        assert.deepEqual(
          entries,
          headers.map((header) => ({ ...header, ordinal: undefined })),
        );
      },
    ),
    { numRuns: 300 },
  );
});

for (const format of ["gnu", "pax", "ustar", "v7"]) {
  test(`reads what GNU tar writes in its ${format} format`, async (context) => {
    const directory = mkdtempSync(join(tmpdir(), "tar-"));
    context.after(() => rmSync(directory, { recursive: true }));
    const long = `${"d".repeat(60)}/${"e".repeat(30)}`;
    mkdirSync(join(directory, long), { recursive: true });
    writeFileSync(join(directory, long, "f"), "content".repeat(300));
    symlinkSync("../target", join(directory, "link"));
    utimesSync(join(directory, long, "f"), 1_000_000_000.25, 1_000_000_000.25);
    const archive = execFileSync("tar", ["-C", directory, `--format=${format}`, "-cf", "-", "."], {
      maxBuffer: 1 << 24,
    });
    const entries = await readAll(archive);
    const file = entries.find(({ entry }) => entry.name === `./${long}/f`);
    assert.equal(file?.content.toString(), "content".repeat(300));
    assert.equal(file?.entry.mtimeNs, format === "pax" ? 1_000_000_000_250_000_000n : 1_000_000_000_000_000_000n);
    const link = entries.find(({ entry }) => entry.name === "./link");
    assert.equal(link?.entry.type, "symlink");
    assert.equal(link?.entry.linkName, "../target");
    assert.equal(entries.find(({ entry }) => entry.name === "./")?.entry.type, "directory");
  });
}

test("skips content that nobody reads", async () => {
  const archive = tarOf([
    { name: "a", content: "x".repeat(5000) },
    { name: "b", content: "y" },
  ]);
  const reader = new TarReader(inChunks(archive, 100));
  const first = await reader.next();
  for await (const chunk of reader.content()) {
    assert.ok(chunk.length > 0);
    break;
  }
  const second = await reader.next();
  assert.deepEqual([first?.name, second?.name, await reader.next()], ["a", "b", undefined]);
});

test("random bytes end in an entry list or in InvalidInput, never otherwise", async () => {
  const seed = tarOf([
    { name: "a", content: "hello" },
    { name: "n".repeat(200), content: "x".repeat(900) },
  ]);
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(fc.nat(seed.length - 1), fc.nat(255)), { maxLength: 12 }), async (edits) => {
      const archive = Buffer.from(seed);
      for (const [at, value] of edits) archive.writeUInt8(value, at);
      try {
        await readAll(archive);
      } catch (error) {
        assert.ok(error instanceof InvalidInput, String(error));
      }
    }),
    { numRuns: 500 },
  );
});
