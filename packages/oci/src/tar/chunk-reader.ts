import { InvalidInput } from "../invalid-input.ts";

/** Cuts a stream of chunks into reads of exact length. */
export class ChunkReader {
  readonly #source: AsyncIterator<Uint8Array>;
  #chunk: Buffer = Buffer.alloc(0);

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Exactly `length` bytes, or undefined when the stream ended before the first of them. Throws InvalidInput in between. */
  async read(length: number): Promise<Buffer | undefined> {
    if (this.#chunk.length >= length) return this.#cut(length);
    const parts: Buffer[] = [];
    let missing = length;
    while (missing > 0) {
      if (this.#chunk.length === 0 && !(await this.#fill())) {
        if (missing === length) return undefined;
        throw truncated();
      }
      const part = this.#cut(Math.min(missing, this.#chunk.length));
      parts.push(part);
      missing -= part.length;
    }
    return Buffer.concat(parts, length);
  }

  /** The next `length` bytes as they come; throws InvalidInput when the stream ends first. */
  async *take(length: number): AsyncGenerator<Buffer> {
    for (let missing = length; missing > 0; ) {
      if (this.#chunk.length === 0 && !(await this.#fill())) throw truncated();
      const part = this.#cut(Math.min(missing, this.#chunk.length));
      missing -= part.length;
      yield part;
    }
  }

  /** Passes over `length` bytes; throws InvalidInput when the stream ends first. */
  async skip(length: number): Promise<void> {
    for (let missing = length; missing > 0; ) {
      if (this.#chunk.length === 0 && !(await this.#fill())) throw truncated();
      missing -= this.#cut(Math.min(missing, this.#chunk.length)).length;
    }
  }

  /** Reads the stream to its end and drops it. */
  async drain(): Promise<void> {
    do {
      this.#chunk = Buffer.alloc(0);
    } while (await this.#fill());
  }

  /** Releases the source early. */
  async close(): Promise<void> {
    await this.#source.return?.();
  }

  #cut(length: number): Buffer {
    const part = this.#chunk.subarray(0, length);
    this.#chunk = this.#chunk.subarray(length);
    return part;
  }

  async #fill(): Promise<boolean> {
    for (;;) {
      const next = await this.#source.next();
      if (next.done === true) return false;
      if (next.value.length === 0) continue;
      this.#chunk = Buffer.from(next.value.buffer, next.value.byteOffset, next.value.byteLength);
      return true;
    }
  }
}

function truncated(): InvalidInput {
  return new InvalidInput("the archive ends in the middle of an entry");
}
