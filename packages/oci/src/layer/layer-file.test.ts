import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, open, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { gunzipSync, gzipSync, zstdCompressSync } from "node:zlib";
import { compressionOf } from "./decompress.ts";
import { readTar } from "./layer-file.ts";

/** Bytes that do not compress, the same in every run. */
function noise(bytes: number): Buffer {
  return createHash("shake256", { outputLength: bytes }).update(String(bytes)).digest();
}

/** Reads stored bytes from a file, until `isEnough`, and looks whether all was read and nothing is left. */
async function tarOf(context: TestContext, stored: Buffer, isEnough = (): boolean => false): Promise<Buffer> {
  const folder = await mkdtemp(join(tmpdir(), "oci-layer-file-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  await writeFile(join(folder, "layer"), stored);
  await using file = await open(join(folder, "layer"));
  const chunks: Buffer[] = [];
  for await (const chunk of readTar({ fd: file.fd, compression: compressionOf(stored) }, join(folder, "pipe"))) {
    chunks.push(Buffer.from(chunk));
    if (isEnough()) return Buffer.concat(chunks);
  }
  assert.equal((await file.read(Buffer.alloc(1))).bytesRead, 0);
  assert.deepEqual(await readdir(folder), ["layer"]);
  return Buffer.concat(chunks);
}

test("igzip and zlib read the same: any level and size of members", async (context) => {
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

test("zstd and bytes without compression come whole, and what lies behind is read away", async (context) => {
  const bytes = Buffer.concat([noise(700_000), Buffer.alloc(900_000, "text ")]);
  assert.ok((await tarOf(context, bytes)).equals(bytes));
  assert.ok((await tarOf(context, zstdCompressSync(bytes))).equals(bytes));
  const padded = Buffer.concat([gzipSync(bytes), Buffer.alloc(300_000)]);
  assert.ok((await tarOf(context, padded)).equals(bytes));
});

test("a reader that goes away takes igzip with it", async (context) => {
  await tarOf(context, gzipSync(noise(3_000_000)), () => true);
  const deadlineMs = Date.now() + 10_000;
  while (children().includes("igzip") && Date.now() < deadlineMs) await new Promise((done) => setTimeout(done, 10));
  assert.deepEqual(
    children().filter((name) => name === "igzip"),
    [],
  );
});

test("a host without igzip is told what to install", async (context) => {
  const { PATH } = process.env;
  const folder = await mkdtemp(join(tmpdir(), "oci-path-"));
  context.after(async () => {
    process.env["PATH"] = PATH;
    await rm(folder, { recursive: true });
  });
  await writeFile(join(folder, "mkfifo"), '#!/bin/sh\nexec /usr/bin/mkfifo "$@"\n', { mode: 0o755 });
  process.env["PATH"] = folder;
  await assert.rejects(tarOf(context, gzipSync(Buffer.from("x"))), {
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
