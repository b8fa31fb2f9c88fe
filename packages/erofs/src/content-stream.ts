import type { ImageFile } from "./image-file.ts";

/** The files' content as it arrives, handed on in pieces of any length without holding more than the chunk at hand. */
export class ContentStream {
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #signal: AbortSignal;
  #chunk: Uint8Array = new Uint8Array(0);
  #at = 0;

  constructor(source: AsyncIterable<Uint8Array>, signal: AbortSignal) {
    this.#source = source[Symbol.asyncIterator]();
    this.#signal = signal;
  }

  /** Copies the next `length` bytes to the image. Throws a RangeError when the stream ends before. */
  async toImage(image: ImageFile, length: number): Promise<void> {
    for (let left = length; left > 0; ) {
      if (this.#at === this.#chunk.length) await this.#next(left);
      if (image.isFull) await image.makeRoom(this.#signal);
      const taken = image.add(this.#chunk, this.#at, Math.min(this.#chunk.length, this.#at + left));
      this.#at += taken;
      left -= taken;
    }
  }

  /** Copies the next `length` bytes into memory if the chunk at hand holds them all; else does nothing and returns false. */
  takeHeld(into: Buffer, at: number, length: number): boolean {
    if (length > this.#chunk.length - this.#at) return false;
    if (length > 0) into.set(this.#chunk.subarray(this.#at, this.#at + length), at);
    this.#at += length;
    return true;
  }

  /** Copies the next `length` bytes into memory. */
  async toBuffer(into: Buffer, at: number, length: number): Promise<void> {
    for (let done = 0; done < length; ) {
      if (this.#at === this.#chunk.length) await this.#next(length - done);
      const count = Math.min(length - done, this.#chunk.length - this.#at);
      into.set(this.#chunk.subarray(this.#at, this.#at + count), at + done);
      this.#at += count;
      done += count;
    }
  }

  /** Throws a RangeError when the stream has more bytes. */
  async expectEnd(): Promise<void> {
    while (this.#at === this.#chunk.length) {
      const next = await this.#source.next();
      if (next.done === true) return;
      this.#chunk = next.value;
      this.#at = 0;
    }
    throw new RangeError("the content goes on after the last file");
  }

  /** Lets the source release what it holds; a second call does nothing. */
  async close(): Promise<void> {
    await this.#source.return?.();
  }

  async #next(missing: number): Promise<void> {
    this.#signal.throwIfAborted();
    const next = await this.#source.next();
    if (next.done === true) throw new RangeError(`the content ends ${missing} bytes into a file's data too early`);
    this.#chunk = next.value;
    this.#at = 0;
  }
}
