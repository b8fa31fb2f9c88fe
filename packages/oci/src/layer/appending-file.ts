import { type FileHandle, open } from "node:fs/promises";
import { mib, ServiceError } from "@unkey/base";

const bufferBytes = mib;

/**
 * A file written from front to back. What is added gathers in buffers that go to the thread pool one after the other, while the
 * caller fills the next.
 */
export class AppendingFile implements AsyncDisposable {
  readonly #handle: FileHandle;
  #buffer: Buffer = Buffer.allocUnsafeSlow(bufferBytes);
  #used = 0;
  /** Filled, to be written in their order. */
  #full: Buffer[] = [];
  readonly #spare: Buffer[] = [];
  /** Bytes of all buffers filled; those of buffers whose write has begun. */
  #filledBytes = 0;
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
    return this.#filledBytes + this.#used;
  }

  /** Copies bytes[from..to) without waiting; `settle` belongs behind each chunk of input, or memory grows. */
  add(bytes: Buffer, from = 0, to = bytes.length): void {
    for (let at = from; at < to; ) {
      const copied = bytes.copy(this.#buffer, this.#used, at, to);
      at += copied;
      this.#use(copied);
    }
  }

  addZeros(count: number): void {
    for (let left = count; left > 0; ) {
      const fitting = Math.min(left, bufferBytes - this.#used);
      this.#buffer.fill(0, this.#used, this.#used + fitting);
      left -= fitting;
      this.#use(fitting);
    }
  }

  /** Starts a write of each buffer that is full, after the one before. Throws ROOTFS_DISK_FULL. */
  async settle(): Promise<void> {
    if (this.#full.length === 0) return;
    const full = this.#full;
    this.#full = [];
    for (const buffer of full) await this.#write(buffer, bufferBytes);
  }

  /** Writes what is left. */
  async finish(): Promise<void> {
    await this.settle();
    await this.#write(this.#buffer, this.#used);
    await this.#writing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing.catch(() => {}); // nobody asks any more
    await this.#handle.close();
  }

  #use(bytes: number): void {
    this.#used += bytes;
    if (this.#used < bufferBytes) return;
    this.#full.push(this.#buffer);
    this.#filledBytes += bufferBytes;
    this.#buffer = this.#spare.pop() ?? Buffer.allocUnsafeSlow(bufferBytes);
    this.#used = 0;
  }

  async #write(buffer: Buffer, bytes: number): Promise<void> {
    await this.#writing;
    this.#writing = this.#writeAll(buffer, bytes, this.#position);
    this.#writing.catch(() => {}); // told at the next call
    this.#position += bytes;
  }

  async #writeAll(buffer: Buffer, bytes: number, position: number): Promise<void> {
    for (let at = 0; at < bytes; ) {
      // Cut short, as by a disk that is nearly full: the rest tells why.
      const written = await this.#handle.write(buffer, at, bytes - at, position + at).catch(rethrowDiskFull);
      at += written.bytesWritten;
    }
    this.#spare.push(buffer);
  }
}

function rethrowDiskFull(error: unknown): never {
  if (error instanceof Error && "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT")) {
    throw new ServiceError("ROOTFS_DISK_FULL", "the build's disk is full", { cause: error });
  }
  throw error;
}
