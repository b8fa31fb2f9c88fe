import { createHash } from "node:crypto";
import { createReadStream, type Stats } from "node:fs";
import { chmod, link, mkdir, open, readdir, rm, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { ServiceError } from "@unkey/base";
import type { Digest } from "../domain/asset.ts";
import type { BlobStore, ReceivedBlob } from "../ports.ts";

const readChunkBytes = 1024 * 1024;
/** Space that an upload must leave, so that the catalog beside it can still commit. */
const reserveBytes = 64 * 1024 * 1024;

/**
 * Blobs as files `<root>/sha256/<2 hex>/<62 hex>`. A blob appears by one hard link after its bytes are verified and
 * fsynced, is never written again and never replaced, because VMs share its inode. Blobs are readable by all (0444), so
 * that a VM's own user can open a hard link of one; nobody but us can enter the directories (0700) above them.
 */
export class DiskBlobStore implements BlobStore {
  readonly #root: string;
  readonly #incoming: string;
  /** What was read and found right since the start, by digest: a hard link must not cost a read of the whole. */
  readonly #seen = new Map<Digest, string>();

  private constructor(root: string) {
    this.#root = root;
    this.#incoming = join(root, "incoming");
  }

  /** Opens the store and drops what a dead process left half received. */
  static async open(root: string): Promise<DiskBlobStore> {
    const store = new DiskBlobStore(root);
    await rm(store.#incoming, { recursive: true, force: true });
    await mkdir(store.#incoming, { recursive: true, mode: 0o700 });
    await mkdir(join(root, "sha256"), { recursive: true, mode: 0o700 });
    await chmod(root, 0o700);
    return store;
  }

  async receive(
    expected: { readonly digest: Digest; readonly sizeBytes: number },
    chunks: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<ReceivedBlob> {
    const { digest, sizeBytes } = expected;
    const known = (await this.sizeOf(digest)) === sizeBytes;
    // A blob that is there already is not written again, but its sender must still prove to have it.
    if (known) {
      await drain(digest, sizeBytes, chunks, signal, () => Promise.resolve());
      return { commit: () => Promise.resolve(), [Symbol.asyncDispose]: () => Promise.resolve() };
    }
    await this.#mustHaveRoom(sizeBytes);
    const temporary = join(this.#incoming, `${process.pid}-${Math.random().toString(36).slice(2)}`);
    const discard = () => rm(temporary, { force: true });
    try {
      await using file = await open(temporary, "wx", 0o444);
      await drain(digest, sizeBytes, chunks, signal, async (chunk) => {
        await file.writeFile(chunk);
      });
      await file.chmod(0o444); // whatever the umask says
      await file.sync();
    } catch (error) {
      await discard();
      if ((error as NodeJS.ErrnoException).code === "ENOSPC") throw full(error);
      throw error;
    }
    return { commit: () => this.#commit(temporary, digest), [Symbol.asyncDispose]: discard };
  }

  async sizeOf(digest: Digest): Promise<number | undefined> {
    return (await statOf(this.#pathOf(digest)))?.size;
  }

  async verified(digest: Digest, signal: AbortSignal): Promise<string> {
    const path = this.#pathOf(digest);
    const stats = await statOf(path);
    if (stats === undefined) throw corrupt(digest, "is missing");
    if (this.#seen.get(digest) === stampOf(stats)) return path;
    for await (const chunk of this.read(digest, 0, signal)) void chunk;
    return path;
  }

  async *read(digest: Digest, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const path = this.#pathOf(digest);
    const stats = await statOf(path);
    if (stats === undefined) throw corrupt(digest, "is missing");
    const hash = createHash("sha256");
    let position = 0;
    // From the first byte even when the caller wants a later one: only the whole can be verified.
    for await (const chunk of createReadStream(path, { highWaterMark: readChunkBytes, signal })) {
      const bytes = chunk as Buffer;
      hash.update(bytes);
      const skip = Math.max(0, offset - position);
      position += bytes.length;
      if (skip < bytes.length) yield bytes.subarray(skip);
    }
    if (`sha256:${hash.digest("hex")}` !== digest) throw corrupt(digest, "has other bytes than its digest says");
    this.#seen.set(digest, stampOf(stats));
  }

  async *list(): AsyncGenerator<Digest> {
    const top = join(this.#root, "sha256");
    for (const prefix of await readdir(top)) {
      if (!/^[0-9a-f]{2}$/.test(prefix)) continue;
      for (const rest of await readdir(join(top, prefix))) {
        if (/^[0-9a-f]{62}$/.test(rest)) yield `sha256:${prefix}${rest}`;
      }
    }
  }

  async delete(digest: Digest): Promise<number> {
    const path = this.#pathOf(digest);
    const stats = await statOf(path);
    if (stats === undefined) return 0;
    this.#seen.delete(digest);
    await rm(path, { force: true });
    await syncDirectory(join(path, ".."));
    return stats.size;
  }

  async #commit(temporary: string, digest: Digest): Promise<void> {
    const path = this.#pathOf(digest);
    const dir = join(path, "..");
    await mkdir(dir, { recursive: true, mode: 0o700 });
    try {
      await link(temporary, path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      // Another upload of the same bytes was first, unless what lies there is not these bytes.
      await this.verified(digest, AbortSignal.timeout(600_000));
    }
    await syncDirectory(dir);
    await syncDirectory(join(dir, ".."));
    await rm(temporary, { force: true });
    const stats = await statOf(path);
    if (stats !== undefined) this.#seen.set(digest, stampOf(stats));
  }

  async #mustHaveRoom(sizeBytes: number): Promise<void> {
    const { bavail, bsize } = await statfs(this.#root);
    if (bavail * bsize < sizeBytes + reserveBytes) throw full();
  }

  #pathOf(digest: Digest): string {
    const hex = digest.slice("sha256:".length);
    return join(this.#root, "sha256", hex.slice(0, 2), hex.slice(2));
  }
}

/** Reads `chunks` to the end into `write`, and compares length and digest with what was declared. */
async function drain(
  digest: Digest,
  sizeBytes: number,
  chunks: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
  write: (chunk: Uint8Array) => Promise<void>,
): Promise<void> {
  const hash = createHash("sha256");
  let received = 0;
  for await (const chunk of chunks) {
    signal.throwIfAborted();
    received += chunk.length;
    if (received > sizeBytes) {
      throw new ServiceError("ASSET_SIZE_MISMATCH", `more than the declared ${sizeBytes} bytes arrived`);
    }
    hash.update(chunk);
    await write(chunk);
  }
  signal.throwIfAborted();
  if (received !== sizeBytes) {
    throw new ServiceError("ASSET_SIZE_MISMATCH", `${received} bytes arrived, ${sizeBytes} were declared`);
  }
  const actual = `sha256:${hash.digest("hex")}`;
  if (actual !== digest) {
    throw new ServiceError("ASSET_DIGEST_MISMATCH", `the bytes have the digest ${actual}, ${digest} was declared`);
  }
}

/** Changes whenever the file's content may have changed. */
function stampOf({ ino, size, mtimeMs }: Stats): string {
  return `${ino}:${size}:${mtimeMs}`;
}

async function statOf(path: string): Promise<Stats | undefined> {
  try {
    const stats = await stat(path);
    return stats.isFile() ? stats : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

async function syncDirectory(path: string): Promise<void> {
  await using dir = await open(path, "r");
  await dir.sync();
}

function corrupt(digest: Digest, why: string): ServiceError {
  return new ServiceError("ASSET_CORRUPT", `the stored blob ${digest} ${why}`);
}

function full(cause?: unknown): ServiceError {
  return new ServiceError("ASSET_STORE_FULL", "the asset store has no room for this", { cause });
}
