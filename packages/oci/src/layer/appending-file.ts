import { closeSync, openSync, writeSync } from "node:fs";
import { kib, mib, ServiceError } from "@unkey/base";

const bufferBytes = mib;
/** So many bytes at once are written from where they are. */
const wholeBytes = 128 * kib;

/** A file written from front to back by a process that has nothing else to do meanwhile. Methods throw ROOTFS_DISK_FULL. */
export class AppendingFile implements Disposable {
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafeSlow(bufferBytes);
  #used = 0;
  #writtenBytes = 0;

  /** Makes the file; throws when it exists. */
  constructor(path: string) {
    this.#fd = failing(() => openSync(path, "wx", 0o600));
  }

  get sizeBytes(): number {
    return this.#writtenBytes + this.#used;
  }

  /** Adds bytes[from..to). */
  add(bytes: Buffer, from = 0, to = bytes.length): void {
    if (to - from >= wholeBytes) {
      this.finish();
      this.#write(bytes, from, to);
      return;
    }
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

  /** Writes what is left. */
  finish(): void {
    this.#write(this.#buffer, 0, this.#used);
    this.#used = 0;
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #use(bytes: number): void {
    this.#used += bytes;
    if (this.#used === bufferBytes) this.finish();
  }

  #write(bytes: Buffer, from: number, to: number): void {
    // Cut short, as by a disk that is nearly full: the rest tells why.
    for (let at = from; at < to; ) at += failing(() => writeSync(this.#fd, bytes, at, to - at));
    this.#writtenBytes += to - from;
  }
}

function failing<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT")) {
      throw new ServiceError("ROOTFS_DISK_FULL", "the build's disk is full", { cause: error });
    }
    throw error;
  }
}
