import type { Http2ServerRequest } from "node:http2";
import { ServiceError } from "@unkey/base";

/** Silence of a client after which it counts as gone. */
const idleMs = 120_000;
/** Small reads are joined to messages of at least so many bytes: each costs the same whatever its size. */
const joinBytes = 256 * 1024;
const maxChunkBytes = 1024 * 1024;

/**
 * The body of a request, read at the pace of whoever takes its chunks. A client that breaks off ends it: what came
 * before is worth keeping, and `brokenOff` tells.
 */
export class RequestBody {
  brokenOff = false;
  readonly #request: Http2ServerRequest;

  constructor(request: Http2ServerRequest) {
    this.#request = request;
  }

  /** What the header announces; undefined when it does not. */
  get declaredBytes(): number | undefined {
    const text = this.#request.headers["content-length"];
    return text === undefined ? undefined : Number(text);
  }

  /** Chunks of at most 1 MiB. */
  async *chunks(): AsyncGenerator<Uint8Array> {
    const request = this.#request;
    request.setTimeout(idleMs, () => request.destroy(new Error("the client fell silent")));
    let waiting: Uint8Array[] = [];
    let waitingBytes = 0;
    const joined = () => {
      const bytes = waiting.length === 1 && waiting[0] ? waiting[0] : Buffer.concat(waiting);
      waiting = [];
      waitingBytes = 0;
      return bytes;
    };
    for await (const part of this.#parts()) {
      waiting.push(part);
      waitingBytes += part.byteLength;
      if (waitingBytes >= joinBytes) yield* slices(joined());
    }
    if (waitingBytes > 0) yield* slices(joined());
  }

  /** The whole body. Throws `tooLarge` as soon as it is longer than `maxBytes`. */
  async whole(maxBytes: number, tooLarge: () => ServiceError): Promise<Uint8Array> {
    if ((this.declaredBytes ?? 0) > maxBytes) throw tooLarge();
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const part of this.chunks()) {
      size += part.byteLength;
      if (size > maxBytes) throw tooLarge();
      parts.push(part);
    }
    if (this.brokenOff) throw new ServiceError("CANCELED", "the client broke off");
    return Buffer.concat(parts);
  }

  async *#parts(): AsyncGenerator<Uint8Array> {
    const iterator = (this.#request as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]();
    for (;;) {
      const next = await iterator.next().catch(() => undefined);
      if (next === undefined) {
        this.brokenOff = true;
        return;
      }
      if (next.done === true) break;
      yield next.value;
    }
    // HTTP/2 ends the readable side of a stream that was reset like one that is complete.
    this.brokenOff = this.#request.aborted;
  }
}

/** The same chunks, or undefined when there is none: an empty body needs no call to store it. */
export async function unlessEmpty(chunks: AsyncGenerator<Uint8Array>): Promise<AsyncGenerator<Uint8Array> | undefined> {
  const first = await chunks.next();
  if (first.done === true) return undefined;
  return (async function* () {
    yield first.value;
    yield* chunks;
  })();
}

/** Passes on what fits and stops at the first chunk that does not. */
export class Bounded {
  exceeded = false;
  readonly #chunks: AsyncIterable<Uint8Array>;
  #left: number;

  constructor(chunks: AsyncIterable<Uint8Array>, maxBytes: number) {
    this.#chunks = chunks;
    this.#left = maxBytes;
  }

  async *chunks(): AsyncGenerator<Uint8Array> {
    for await (const chunk of this.#chunks) {
      this.#left -= chunk.byteLength;
      this.exceeded = this.#left < 0;
      if (this.exceeded) return;
      yield chunk;
    }
  }
}

function* slices(bytes: Uint8Array): Generator<Uint8Array> {
  for (let from = 0; from < bytes.byteLength; from += maxChunkBytes) yield bytes.subarray(from, from + maxChunkBytes);
}
