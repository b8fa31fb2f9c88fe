import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { type DecompressOptions, decompress } from "./decompress.ts";
import { defaultImageLimits } from "./limits.ts";

const limits = defaultImageLimits;
const { signal } = new AbortController();

/** Bytes that do not compress, the same in every run. */
function noise(bytes: number): Buffer {
  return createHash("shake256", { outputLength: bytes }).update(String(bytes)).digest();
}

async function* inPieces(bytes: Buffer, pieceBytes: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += pieceBytes) yield bytes.subarray(at, at + pieceBytes);
}

async function gunzipped(stored: Buffer, gunzip: DecompressOptions["gunzip"], pieceBytes = 1000): Promise<Buffer> {
  const options = { sizeBytes: stored.length, limits, gunzip, signal };
  return Buffer.concat(await Array.fromAsync(decompress(inPieces(stored, pieceBytes), options)));
}

test("igzip and zlib read the same: any level, members and cuts between chunks", async () => {
  for (const [index, level] of [0, 1, 6, 9].entries()) {
    const members = [0, 1, 70_000, 300_000].map((bytes) =>
      Buffer.concat([noise(Math.floor(bytes / 2)), Buffer.alloc(Math.ceil(bytes / 2), "text ")]),
    );
    const stored = Buffer.concat(members.map((member) => gzipSync(member, { level })));
    for (const gunzip of ["igzip", "zlib"] as const) {
      const read = await gunzipped(stored, gunzip, 997 * (index + 1));
      assert.ok(read.equals(Buffer.concat(members)), `${gunzip}, level ${level}`);
    }
  }
});

test("what the chunks throw is thrown, however far igzip has come", async () => {
  const stored = gzipSync(noise(300_000));
  async function* cut(): AsyncGenerator<Buffer> {
    yield* inPieces(stored.subarray(0, 200_000), 10_000);
    throw new Error("the registry has gone");
  }
  const all = decompress(cut(), { sizeBytes: stored.length, limits, gunzip: "igzip", signal });
  await assert.rejects(Array.fromAsync(all), /the registry has gone/);
});

test("a reader that goes away takes igzip with it", async () => {
  const stored = gzipSync(noise(3_000_000));
  const options = { sizeBytes: stored.length, limits, gunzip: "igzip", signal } as const;
  for await (const _ of decompress(inPieces(stored, 10_000), options)) break;
  const deadlineMs = Date.now() + 10_000;
  while (children().includes("igzip") && Date.now() < deadlineMs) await new Promise((done) => setTimeout(done, 10));
  assert.deepEqual(
    children().filter((name) => name === "igzip"),
    [],
  );
});

test("a host without igzip is told what to install", async (t) => {
  const { PATH } = process.env;
  t.after(() => {
    process.env["PATH"] = PATH;
  });
  process.env["PATH"] = "/nowhere";
  await assert.rejects(gunzipped(gzipSync(Buffer.from("x")), "igzip"), {
    reason: "ROOTFS_TOOL_MISSING",
    message: /install isal/,
  });
});

/** Names of this process's children. */
function children(): string[] {
  return readdirSync(`/proc/${process.pid}/task`)
    .flatMap((thread) => readFileSync(`/proc/${process.pid}/task/${thread}/children`, "utf8").trim().split(" "))
    .filter((pid) => pid !== "")
    .map((pid) => readFileSync(`/proc/${pid}/comm`, "utf8").trim());
}
