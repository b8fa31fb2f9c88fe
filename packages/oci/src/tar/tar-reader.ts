import type { TarEntry } from "./tar-entry.ts";
import { TarParser } from "./tar-parser.ts";

export type { TarEntry } from "./tar-entry.ts";

/** Reads a tar archive entry by entry, for archives of few large members; see TarParser for what it takes and refuses. */
export class TarReader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  readonly #parser: TarParser;
  /** What the parser has made of the chunks so far; bounded by one chunk. */
  readonly #parsed: (TarEntry | Buffer)[] = [];
  #ended = false;

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
    this.#parser = new TarParser({
      entry: (entry) => this.#parsed.push(entry),
      content: (bytes) => this.#parsed.push(bytes),
    });
  }

  /** The next entry, passing over what was not read of the last one; undefined at the end, with the input drained. */
  async next(): Promise<TarEntry | undefined> {
    for (;;) {
      for (let part = this.#parsed.shift(); part !== undefined; part = this.#parsed.shift()) {
        if (!Buffer.isBuffer(part)) return part;
      }
      if (!(await this.#fill())) return undefined;
    }
  }

  /** The content of the entry that `next` returned last; once. */
  async *content(): AsyncGenerator<Buffer> {
    for (;;) {
      for (let part = this.#parsed[0]; part !== undefined; part = this.#parsed[0]) {
        if (!Buffer.isBuffer(part)) return;
        this.#parsed.shift();
        yield part;
      }
      if (!(await this.#fill())) return;
    }
  }

  /** Releases the input early. */
  async close(): Promise<void> {
    await this.#chunks.return?.();
  }

  async #fill(): Promise<boolean> {
    if (this.#ended) return false;
    const next = await this.#chunks.next();
    if (next.done === true) {
      this.#ended = true;
      this.#parser.end();
      return false;
    }
    this.#parser.write(Buffer.from(next.value.buffer, next.value.byteOffset, next.value.byteLength));
    return true;
  }
}
