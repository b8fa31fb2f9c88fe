import type { Http2ServerRequest } from "node:http2";
import { Transform, type TransformCallback } from "node:stream";

export class BodyTooLarge extends Error {}
export class BodyStalled extends Error {}

/** A client that sends nothing for so long has lost its connection, or means harm. */
const stallMs = 60_000;

/**
 * A request's body on its way to the app, with back-pressure, at most `maxBytes` and never silent for long. It stands
 * between the two connections: when the one to the app fails, the one to the client still gets an answer.
 */
export class BodyMeter extends Transform {
  readonly #maxBytes: number;
  #size = 0;
  #stall: NodeJS.Timeout;

  constructor(request: Http2ServerRequest, maxBytes: number) {
    super();
    this.#maxBytes = maxBytes;
    this.#stall = setTimeout(() => this.#onStall(), stallMs);
    request.on("error", (error) => this.destroy(error));
    request.once("aborted", () => this.destroy(new Error("the client broke off")));
    request.pipe(this);
    this.once("close", () => {
      clearTimeout(this.#stall);
      request.unpipe(this);
      request.resume(); // what is left is read and thrown away, so that the answer can be
    });
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    this.#size += chunk.byteLength;
    this.#stall.refresh();
    if (this.#size > this.#maxBytes) done(new BodyTooLarge());
    else done(null, chunk);
  }

  override _flush(done: TransformCallback): void {
    clearTimeout(this.#stall);
    done();
  }

  #onStall(): void {
    // Held up by the app: it is not the client that is slow.
    if (this.readableLength > 0) this.#stall.refresh();
    else this.destroy(new BodyStalled());
  }
}
