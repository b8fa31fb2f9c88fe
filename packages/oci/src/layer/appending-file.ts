import { type FileHandle, open } from "node:fs/promises";
import { mib, ServiceError } from "@unkey/base";

const writeBytes = mib;
/** Chunks of input that pieces may keep in memory: a few bytes of each would add up to all of it. */
const maxChunksHeld = 8;

/**
 * A file written from front to back. Pieces gather and go to the thread pool together, one write at a time, while the caller
 * makes the next pieces; they must stay as they are until then.
 */
export class AppendingFile implements AsyncDisposable {
  readonly #handle: FileHandle;
  #pieces: Buffer[] = [];
  #bytes = 0;
  #chunksHeld = 0;
  #position = 0;
  #writing: Promise<void> = Promise.resolve();

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Makes the file; throws when it exists. */
  static async create(path: string): Promise<AppendingFile> {
    return new AppendingFile(await open(path, "wx", 0o600).catch(rethrowDiskFull));
  }

  get sizeBytes(): number {
    return this.#position + this.#bytes;
  }

  /** Adds a piece without waiting; `settle` belongs behind each chunk of input that pieces are cut from. */
  add(piece: Buffer): void {
    this.#pieces.push(piece);
    this.#bytes += piece.length;
  }

  /** Starts a write when enough has gathered, after the one before. Throws ROOTFS_DISK_FULL. */
  async settle(): Promise<void> {
    if (this.#bytes === 0) return;
    this.#chunksHeld++;
    if (this.#bytes >= writeBytes || this.#chunksHeld >= maxChunksHeld) await this.#write();
  }

  /** Writes what is left. */
  async finish(): Promise<void> {
    await this.#write();
    await this.#writing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing.catch(() => {}); // nobody asks any more
    await this.#handle.close();
  }

  async #write(): Promise<void> {
    await this.#writing;
    const pieces = this.#pieces;
    const position = this.#position;
    this.#position += this.#bytes;
    this.#pieces = [];
    this.#bytes = 0;
    this.#chunksHeld = 0;
    this.#writing = this.#writeAll(pieces, position);
    this.#writing.catch(() => {}); // told at the next call
  }

  async #writeAll(pieces: Buffer[], start: number): Promise<void> {
    if (pieces.length === 0) return;
    const total = pieces.reduce((sum, { length }) => sum + length, 0);
    const { bytesWritten } = await this.#handle.writev(pieces, start).catch(rethrowDiskFull);
    if (bytesWritten === total) return;
    // Cut short, as by a disk that is nearly full: the rest tells why.
    const rest = Buffer.concat(pieces).subarray(bytesWritten);
    for (let at = 0; at < rest.length; ) {
      at += (await this.#handle.write(rest, at, rest.length - at, start + bytesWritten + at).catch(rethrowDiskFull))
        .bytesWritten;
    }
  }
}

function rethrowDiskFull(error: unknown): never {
  if (error instanceof Error && "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT")) {
    throw new ServiceError("ROOTFS_DISK_FULL", "the build's disk is full", { cause: error });
  }
  throw error;
}
