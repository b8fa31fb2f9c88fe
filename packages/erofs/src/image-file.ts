import { type FileHandle, open, rm } from "node:fs/promises";
import { ServiceError } from "@unkey/base";
import { blockBytes } from "./format.ts";

const bufferBytes = 2 * 1024 * 1024;
const bufferCount = 3;

/**
 * A file written from its first byte to its last, but for its start. Bytes gather in one buffer while the others are written by the thread pool.
 */
export class ImageFile implements AsyncDisposable {
  readonly #handle: FileHandle;
  readonly #path: string;
  /** Buffers ready to be filled. */
  readonly #spare: Buffer[] = [];
  #buffer: Buffer = Buffer.allocUnsafeSlow(bufferBytes);
  #used = 0;
  #written = 0;
  /** The writes of the latest buffers, oldest first. */
  readonly #writes: Promise<void>[] = [];
  #failure: Error | undefined;
  #kept = false;

  private constructor(handle: FileHandle, path: string) {
    this.#handle = handle;
    this.#path = path;
    for (let i = 1; i < bufferCount; i++) this.#spare.push(Buffer.allocUnsafeSlow(bufferBytes));
  }

  /** Replaces the file at `path`. */
  static async create(path: string): Promise<ImageFile> {
    const handle = await open(path, "w", 0o644).catch((error: unknown) => {
      throw asFailure(error);
    });
    return new ImageFile(handle, path);
  }

  get sizeBytes(): number {
    return this.#written + this.#used;
  }

  get endsBlock(): boolean {
    return this.sizeBytes % blockBytes === 0;
  }

  /** True when `makeRoom` must be awaited before anything more is added. */
  get isFull(): boolean {
    return this.#used === bufferBytes;
  }

  /** Adds as much of bytes[from..to) as there is room for and returns how much that was. */
  add(bytes: Uint8Array, from: number, to: number): number {
    const count = Math.min(to - from, bufferBytes - this.#used);
    this.#buffer.set(bytes.subarray(from, from + count), this.#used);
    this.#used += count;
    return count;
  }

  /** Adds as many of `count` zeros as there is room for. */
  addZeros(count: number): number {
    const fitting = Math.min(count, bufferBytes - this.#used);
    this.#buffer.fill(0, this.#used, this.#used + fitting);
    this.#used += fitting;
    return fitting;
  }

  /** Hands the buffer to the thread pool and takes another; waits while all of them are being written. */
  async makeRoom(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    this.#throwIfFailed();
    const full = this.#buffer;
    const bytes = full.subarray(0, this.#used);
    this.#writes.push(this.#write(bytes, this.#written).then(() => void this.#spare.push(full)));
    this.#written += this.#used;
    this.#used = 0;
    if (this.#writes.length === bufferCount) await this.#writes.shift();
    this.#throwIfFailed();
    this.#buffer = this.#spare.pop() ?? Buffer.allocUnsafeSlow(bufferBytes);
  }

  async write(bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      if (this.isFull) await this.makeRoom(signal);
      at += this.add(bytes, at, bytes.length);
    }
  }

  async writeZeros(count: number, signal: AbortSignal): Promise<void> {
    for (let left = count; left > 0; ) {
      if (this.isFull) await this.makeRoom(signal);
      left -= this.addZeros(left);
    }
  }

  /** Ends the file, with `start` in place of its first bytes; until then, disposing removes it. */
  async finish(start: Uint8Array, signal: AbortSignal): Promise<{ sizeBytes: number }> {
    await this.makeRoom(signal);
    await Promise.all(this.#writes);
    await this.#write(start, 0);
    this.#throwIfFailed();
    signal.throwIfAborted();
    this.#kept = true;
    return { sizeBytes: this.#written };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#writes);
    await this.#handle.close();
    if (!this.#kept) await rm(this.#path, { force: true });
  }

  #throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Never rejects: the failure waits for the next call. */
  async #write(bytes: Uint8Array, position: number): Promise<void> {
    try {
      for (let at = 0; at < bytes.length; ) {
        const { bytesWritten } = await this.#handle.write(bytes, at, bytes.length - at, position + at);
        at += bytesWritten;
      }
    } catch (error) {
      this.#failure ??= asFailure(error);
    }
  }
}

function asFailure(error: unknown): Error {
  if (!(error instanceof Error)) return new Error("the image could not be written", { cause: error });
  const isDiskFull = "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT");
  return isDiskFull ? new ServiceError("ROOTFS_DISK_FULL", "the build's disk is full", { cause: error }) : error;
}
