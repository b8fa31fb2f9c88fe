import type { Hash } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import { chmod, type FileHandle, link, mkdir, open, readdir, realpath, rm, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { type AssetId, isId, ServiceError } from "@unkey/base";
import type { IncomingFile, IncomingFiles } from "../ports.ts";
import { syncDirectory } from "./sync-directory.ts";

const readChunkBytes = 1024 * 1024;
/** Space that an upload must leave, so that the catalog beside it can still commit: its log may have 256 MiB. */
const reserveBytes = 512 * 1024 * 1024;

/** Uploads under way as files `<root>/incoming/<asset id>`. */
export class DiskIncomingFiles implements IncomingFiles {
  readonly #dir: string;
  readonly #intakeRoots: readonly string[];

  private constructor(dir: string, intakeRoots: readonly string[]) {
    this.#dir = dir;
    this.#intakeRoots = intakeRoots;
  }

  /** Files are adopted from below `intakeRoots` only. */
  static async open(root: string, intakeRoots: readonly string[] = []): Promise<DiskIncomingFiles> {
    const dir = join(root, "incoming");
    await mkdir(dir, { recursive: true, mode: 0o700 });
    await chmod(root, 0o700);
    return new DiskIncomingFiles(dir, intakeRoots);
  }

  async open(id: AssetId, offset: number): Promise<IncomingFile> {
    const file = await open(this.path(id), offset === 0 ? "w" : "r+", 0o600).catch((cause: unknown) => {
      throw lost(0, cause);
    });
    try {
      const { size, nlink } = await file.stat();
      // A finish that a crash cut short may have made the file part of the store: those bytes must not change.
      if (nlink > 1) throw new ServiceError("ASSET_NOT_UPLOADING", `the upload ${id} is being finished`);
      if (size < offset) throw lost(size);
      await file.truncate(offset);
      if (offset === 0) await syncDirectory(this.#dir);
    } catch (error) {
      await file.close();
      throw error;
    }
    let position = offset;
    return {
      write: async (chunk) => {
        for (let done = 0; done < chunk.length; ) {
          const { bytesWritten } = await file
            .write(chunk, done, chunk.length - done, position)
            .catch((error: NodeJS.ErrnoException) => {
              throw error.code === "ENOSPC" ? storeFull(error) : error;
            });
          done += bytesWritten;
          position += bytesWritten;
        }
      },
      sync: () => file.sync(),
      [Symbol.asyncDispose]: () => file.close(),
    };
  }

  async settle(id: AssetId, bytes: number): Promise<void> {
    const path = this.path(id);
    const size = await stat(path).then(
      (stats) => stats.size,
      () => undefined,
    );
    if ((size ?? 0) < bytes) throw lost(size ?? 0);
    if (size === bytes) return;
    await using file = await open(path, "a", 0o600);
    await file.truncate(bytes); // what was written beyond was never acknowledged
    await file.sync();
  }

  async adopt(id: AssetId, sourcePath: string, hash: Hash, admit: (bytes: number) => Promise<void>): Promise<number> {
    const real = await realpath(sourcePath).catch((cause: unknown) => refuse("it cannot be found", cause));
    const roots = await Promise.all(this.#intakeRoots.map((root) => realpath(root).catch(() => undefined)));
    if (!roots.some((root) => root !== undefined && real.startsWith(`${root}/`))) {
      refuse("it does not lie below an intake directory");
    }
    await using file = await open(real, constants.O_RDONLY | constants.O_NOFOLLOW).catch((cause: unknown) =>
      refuse("it cannot be opened", cause),
    );
    const source = await file.stat();
    const { size, ino, nlink, uid, mode } = source;
    if (!source.isFile()) refuse("it is not a file");
    // Whoever has another name of it could change it, unless nobody may.
    if (nlink !== 1 && (mode & 0o222) !== 0) refuse("it has several names and can be written to");
    if (uid !== process.getuid?.() || (mode & 0o022) !== 0) refuse("others can write to it");
    await admit(size);
    const path = this.path(id);
    await rm(path, { force: true });
    await link(real, path).catch((cause: unknown) => refuse("it lies on another file system", cause));
    if ((await stat(path)).ino !== ino) {
      await rm(path, { force: true });
      refuse("it was replaced");
    }
    await Promise.all([file.sync(), hashFile(file, hash)]);
    await syncDirectory(this.#dir);
    return size;
  }

  async *read(id: AssetId, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    yield* createReadStream(this.path(id), { highWaterMark: readChunkBytes, signal }) as AsyncIterable<Buffer>;
  }

  path(id: AssetId): string {
    return join(this.#dir, id);
  }

  async remove(id: AssetId): Promise<void> {
    await rm(this.path(id), { force: true });
  }

  async list(): Promise<AssetId[]> {
    return (await readdir(this.#dir)).filter((name) => isId("asset", name));
  }

  async mustHaveRoom(bytes: number): Promise<void> {
    const { bavail, bsize } = await statfs(this.#dir);
    if (bavail * bsize < bytes + reserveBytes) throw storeFull();
  }
}

function refuse(why: string, cause?: unknown): never {
  throw new ServiceError("ASSET_SOURCE_REFUSED", `the file is not taken: ${why}`, { cause });
}

/** Gives `hash` a whole file: one buffer is hashed while the other is being read. */
async function hashFile(file: FileHandle, hash: Hash): Promise<void> {
  let [reading, hashing] = [Buffer.allocUnsafeSlow(readChunkBytes), Buffer.allocUnsafeSlow(readChunkBytes)];
  let position = 0;
  for (let next = file.read(reading, 0, readChunkBytes, position); ; ) {
    const { bytesRead } = await next;
    if (bytesRead === 0) return;
    position += bytesRead;
    [reading, hashing] = [hashing, reading];
    next = file.read(reading, 0, readChunkBytes, position);
    hash.update(hashing.subarray(0, bytesRead));
  }
}

function lost(size: number, cause?: unknown): ServiceError {
  return new ServiceError("UPLOAD_OFFSET_MISMATCH", `only ${size} bytes of the upload are left`, {
    cause,
    metadata: { receivedBytes: String(size) },
  });
}

function storeFull(cause?: unknown): ServiceError {
  return new ServiceError("ASSET_STORE_FULL", "the asset store has no room for this", { cause });
}
