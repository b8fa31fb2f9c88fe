import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { gunzipSync, gzipSync, zstdCompressSync } from "node:zlib";
import { InvalidInput } from "../invalid-input.ts";
import { compressionOf } from "./decompress.ts";
import { inflate } from "./inflate.ts";
import { readTar } from "./layer-file.ts";

/** Bytes that do not compress, the same in every run. */
function noise(bytes: number): Buffer {
  return createHash("shake256", { outputLength: bytes }).update(String(bytes)).digest();
}

/** Reads stored bytes from a file, and looks whether all was read. */
async function tarOf(context: TestContext, stored: Buffer): Promise<Buffer> {
  const folder = await mkdtemp(join(tmpdir(), "oci-layer-file-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  await writeFile(join(folder, "layer"), stored);
  await using file = await open(join(folder, "layer"));
  const chunks: Buffer[] = [];
  for (const chunk of readTar({ fd: file.fd, compression: compressionOf(stored) })) chunks.push(Buffer.from(chunk));
  assert.equal((await file.read(Buffer.alloc(1))).bytesRead, 0);
  return Buffer.concat(chunks);
}

test("the same bytes as from zlib at once: any level and size of members", async (context) => {
  for (const level of [0, 1, 6, 9]) {
    const members = [0, 1, 70_000, 1_300_000].map((bytes) =>
      Buffer.concat([noise(Math.floor(bytes / 2)), Buffer.alloc(Math.ceil(bytes / 2), "text ")]),
    );
    const stored = Buffer.concat(members.map((member) => gzipSync(member, { level })));
    const read = await tarOf(context, stored);
    assert.ok(read.equals(Buffer.concat(members)), `level ${level}`);
    assert.ok(read.equals(gunzipSync(stored)), `level ${level}`);
  }
});

test("wherever a stream is cut, it is the same bytes", () => {
  const bytes = Buffer.concat([noise(2000), Buffer.alloc(600_000, "text ")]);
  const streams = { gzip: gzipSync(bytes), zstd: zstdCompressSync(bytes) };
  for (const [compression, stored] of Object.entries(streams) as ["gzip" | "zstd", Buffer][]) {
    const twice = Buffer.concat([stored, stored]);
    for (let at = 0; at <= twice.length; at += at > stored.length - 30 && at < stored.length + 30 ? 1 : 29) {
      const hash = createHash("sha256");
      for (const chunk of inflate([twice.subarray(0, at), twice.subarray(at)], compression)) hash.update(chunk);
      const expected = createHash("sha256").update(bytes).update(bytes);
      assert.equal(hash.digest("hex"), expected.digest("hex"), `${compression} cut at ${at}`);
    }
  }
});

test("a stream that is cut short is damaged, and so is gzip with bytes behind its end that are not zeros", () => {
  const bytes = noise(100_000);
  const drain = (stored: Buffer, compression: "gzip" | "zstd"): number =>
    inflate([stored], compression).reduce((sum, chunk) => sum + chunk.length, 0);
  for (const [compression, stored] of [
    ["gzip", gzipSync(bytes)],
    ["zstd", zstdCompressSync(bytes)],
  ] as const) {
    for (const missing of [1, 8, 9, 5000, stored.length - 2]) {
      assert.throws(() => drain(stored.subarray(0, -missing), compression), InvalidInput, `${compression}, ${missing}`);
    }
  }
  for (const behind of [Buffer.from("x"), noise(20)]) {
    assert.throws(() => drain(Buffer.concat([gzipSync(bytes), behind]), "gzip"), InvalidInput);
  }
  assert.equal(drain(Buffer.concat([gzipSync(bytes), Buffer.alloc(1000)]), "gzip"), bytes.length);
});

test("zstd and bytes without compression come whole, and what lies behind is read away", async (context) => {
  const bytes = Buffer.concat([noise(700_000), Buffer.alloc(900_000, "text ")]);
  assert.ok((await tarOf(context, bytes)).equals(bytes));
  assert.ok((await tarOf(context, zstdCompressSync(bytes))).equals(bytes));
  const padded = Buffer.concat([gzipSync(bytes), Buffer.alloc(300_000)]);
  assert.ok((await tarOf(context, padded)).equals(bytes));
});
