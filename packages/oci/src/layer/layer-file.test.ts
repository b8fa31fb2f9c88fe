import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { gunzipSync, gzipSync, zstdCompressSync } from "node:zlib";
import * as fc from "fast-check";
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

/** What a layer in a file is read as, or that it is damaged. */
async function readAs(context: TestContext, stored: Buffer): Promise<Buffer | "damaged"> {
  return tarOf(context, stored).catch((error: unknown) => {
    if (error instanceof InvalidInput) return "damaged";
    throw error;
  });
}

function gunzipped(stored: Buffer): Buffer | "damaged" {
  try {
    return gunzipSync(stored);
  } catch {
    return "damaged";
  }
}

test("gzip is read as Node's documented gunzipSync reads it, whole or damaged", async (context) => {
  const member = fc.record({
    randomBytes: fc.nat(400_000),
    textBytes: fc.nat(800_000),
    level: fc.integer({ min: 0, max: 9 }),
  });
  const outcomes = { same: 0, damaged: 0 };
  await fc.assert(
    fc.asyncProperty(
      fc.array(member, { minLength: 1, maxLength: 4 }),
      fc.constantFrom("none", "cut", "flip", "junk", "zeros"),
      fc.nat(),
      async (members, damage, position) => {
        const bytes = members.map(({ randomBytes, textBytes, level }) =>
          gzipSync(Buffer.concat([noise(randomBytes), Buffer.alloc(textBytes, "text ")]), { level }),
        );
        let stored = Buffer.concat(bytes);
        // Behind the first bytes, which say that it is gzip.
        const at = 4 + (position % (stored.length - 4));
        if (damage === "cut") stored = stored.subarray(0, at);
        if (damage === "flip") stored.writeUInt8(stored.readUInt8(at) ^ 0x10, at);
        if (damage === "junk") stored = Buffer.concat([stored, Buffer.from("junk behind")]);
        if (damage === "zeros") stored = Buffer.concat([stored, Buffer.alloc(position % 600_000)]);
        const read = await readAs(context, stored);
        const expected = gunzipped(stored);
        if (read === "damaged" || expected === "damaged") assert.equal(read, expected);
        else assert.ok(read.equals(expected), "other bytes");
        outcomes[read === "damaged" ? "damaged" : "same"]++;
      },
    ),
    { numRuns: 60, seed: 24 },
  );
  assert.ok(outcomes.same > 10 && outcomes.damaged > 10, JSON.stringify(outcomes));
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

test("a stream that is cut short is damaged", async (context) => {
  const bytes = noise(100_000);
  for (const stored of [gzipSync(bytes), zstdCompressSync(bytes)]) {
    for (const missing of [1, 8, 9, 5000, stored.length - 4]) {
      assert.equal(await readAs(context, stored.subarray(0, -missing)), "damaged", `without its last ${missing}`);
    }
  }
});

test("zstd and bytes without compression come whole, and what lies behind is read away", async (context) => {
  const bytes = Buffer.concat([noise(700_000), Buffer.alloc(900_000, "text ")]);
  assert.ok((await tarOf(context, bytes)).equals(bytes));
  assert.ok((await tarOf(context, zstdCompressSync(bytes))).equals(bytes));
  const padded = Buffer.concat([gzipSync(bytes), Buffer.alloc(300_000)]);
  assert.ok((await tarOf(context, padded)).equals(bytes));
});
