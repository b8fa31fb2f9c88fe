import assert from "node:assert/strict";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { logFolderContract } from "../log-folder.contract.ts";
import { DiskLogFolder } from "./disk-log-folder.ts";
import { MemoryLogFolder } from "./memory-log-folder.ts";

async function onDisk() {
  const path = await mkdtemp(join(tmpdir(), "unkey-billaged-"));
  return {
    path: join(path, "wal"),
    folder: await DiskLogFolder.open(join(path, "wal")),
    remove: () => rm(path, { recursive: true }),
  };
}

logFolderContract("a disk", onDisk);
logFolderContract("memory", async () => ({ folder: new MemoryLogFolder(), remove: async () => undefined }));

test("nobody else can read the log", async () => {
  const { path, folder, remove } = await onDisk();
  try {
    await (await folder.create("a")).close();
    const mode = async (at: string) => ((await stat(at)).mode & 0o777).toString(8);
    assert.deepEqual([await mode(path), await mode(join(path, "a"))], ["700", "600"]);
  } finally {
    await remove();
  }
});
