import { type BigIntStats, createReadStream, statSync } from "node:fs";
import { chmod, link, mkdir, open, readdir, rename, rm, unlink } from "node:fs/promises";
import { join } from "node:path";
import { ServiceError } from "@unkey/base";
import type { Digest } from "../domain/asset.ts";
import type { BlobStore } from "../ports.ts";
import { syncDirectory } from "./sync-directory.ts";

const readChunkBytes = 1024 * 1024;
/** Few: each takes a thread of the pool and the journal of the file system, which others wait for. */
const deletesAtOnce = 2;

/**
 * Blobs as files `<root>/sha256/<2 hex>/<62 hex>`. A blob is never written to, because VMs share its inode; a damaged one is
 * replaced by a file of its own. Blobs are readable by all (0444), so that a VM's own user can open a hard link of one;
 * nobody but us can enter the directories (0700) above them.
 */
export class DiskBlobStore implements BlobStore {
  readonly survivesCrashes = false;
  readonly #root: string;
  readonly #adopting: string;

  private constructor(root: string) {
    this.#root = root;
    this.#adopting = join(root, "adopting");
  }

  /** Opens the store and drops the names that a dead process left on their way. */
  static async open(root: string): Promise<DiskBlobStore> {
    const store = new DiskBlobStore(root);
    await rm(store.#adopting, { recursive: true, force: true });
    await mkdir(store.#adopting, { recursive: true, mode: 0o700 });
    await mkdir(join(root, "sha256"), { recursive: true, mode: 0o700 });
    await chmod(root, 0o700);
    return store;
  }

  async adopt(digest: Digest, path: string): Promise<void> {
    const place = this.#pathOf(digest);
    const dir = join(place, "..");
    await mkdir(dir, { recursive: true, mode: 0o700 });
    {
      await using file = await open(path, "r");
      await file.chmod(0o444); // whatever the umask says
      await file.sync();
    }
    const name = join(this.#adopting, digest.slice("sha256:".length));
    await rm(name, { force: true });
    await link(path, name);
    await rename(name, place);
    await rm(name, { force: true }); // a rename between two names of one file does nothing
    await syncDirectory(dir);
    await syncDirectory(join(dir, ".."));
  }

  async size(digest: Digest): Promise<number | undefined> {
    const stats = this.#stat(digest);
    return stats === undefined ? undefined : Number(stats.size);
  }

  // Not the ctime: each VM that gets or drops a link of the file changes it.
  async identity(digest: Digest): Promise<string | undefined> {
    const stats = this.#stat(digest);
    return stats === undefined ? undefined : `${stats.ino}:${stats.size}:${stats.mtimeNs}`;
  }

  async *read(digest: Digest, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const path = await this.localPath(digest);
    yield* createReadStream(path, { start: offset, highWaterMark: readChunkBytes, signal }) as AsyncIterable<Buffer>;
  }

  async *list(): AsyncGenerator<readonly Digest[]> {
    const top = join(this.#root, "sha256");
    for (const prefix of (await readdir(top)).toSorted()) {
      if (!/^[0-9a-f]{2}$/.test(prefix)) continue;
      const names = (await readdir(join(top, prefix))).filter((name) => /^[0-9a-f]{62}$/.test(name));
      if (names.length > 0) yield names.toSorted().map((name): Digest => `sha256:${prefix}${name}`);
    }
  }

  // Not synced: a name that a power failure brings back is an orphan, and goes by later passes.
  async delete(digests: readonly Digest[]): Promise<void> {
    for (let at = 0; at < digests.length; at += deletesAtOnce) {
      await Promise.all(digests.slice(at, at + deletesAtOnce).map((digest) => unlinkIfThere(this.#pathOf(digest))));
    }
  }

  async localPath(digest: Digest): Promise<string> {
    if (this.#stat(digest) === undefined) {
      throw new ServiceError("ASSET_CORRUPT", `the stored blob ${digest} is missing`);
    }
    return this.#pathOf(digest);
  }

  /** In this thread: it takes microseconds, and its way to another thread and back takes more. */
  #stat(digest: Digest): BigIntStats | undefined {
    const stats = statSync(this.#pathOf(digest), { bigint: true, throwIfNoEntry: false });
    return stats?.isFile() === true ? stats : undefined;
  }

  #pathOf(digest: Digest): string {
    const hex = digest.slice("sha256:".length);
    return join(this.#root, "sha256", hex.slice(0, 2), hex.slice(2));
  }
}

async function unlinkIfThere(path: string): Promise<void> {
  await unlink(path).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
  });
}

function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === "ENOENT";
}
