/** A frame with its number. */
export interface Numbered {
  readonly frameSeq: bigint;
}

/** Frames that billaged has not confirmed, oldest first, at most `limit`: when it is full the oldest goes, because counters bridge a gap. */
export class FrameBuffer<Frame extends Numbered> {
  readonly #limit: number;
  #frames: Frame[] = [];
  #confirmedSeq = 0n;
  #dropped = 0;
  #arrival = Promise.withResolvers<void>();

  constructor(limit: number) {
    this.#limit = limit;
  }

  get length(): number {
    return this.#frames.length;
  }

  get droppedCount(): number {
    return this.#dropped;
  }

  /** Every frame up to this number was confirmed or dropped. */
  get settledSeq(): bigint {
    const [oldest] = this.#frames;
    return oldest ? oldest.frameSeq - 1n : this.#confirmedSeq;
  }

  push(frame: Frame): void {
    this.#frames.push(frame);
    if (this.#frames.length > this.#limit) {
      this.#frames.shift();
      this.#dropped++;
    }
    this.#arrival.resolve();
    this.#arrival = Promise.withResolvers();
  }

  /** Forgets the frames up to `frameSeq`. A repeated or older confirmation changes nothing. */
  confirm(frameSeq: bigint): void {
    if (frameSeq <= this.#confirmedSeq) return;
    this.#confirmedSeq = frameSeq;
    this.#frames = this.#frames.filter((frame) => frame.frameSeq > frameSeq);
  }

  /** All unconfirmed frames and then each new one, until `signal` aborts. Frames that were dropped meanwhile are skipped. */
  async *from(signal: AbortSignal): AsyncGenerator<Frame> {
    const aborted = Promise.withResolvers<void>();
    const onAbort = () => aborted.resolve();
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      for (let sentSeq = 0n; !signal.aborted; ) {
        const next = this.#after(sentSeq);
        if (next) {
          sentSeq = next.frameSeq;
          yield next;
        } else {
          await Promise.race([this.#arrival.promise, aborted.promise]);
        }
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Numbers are contiguous, so the place of one follows from the first. */
  #after(frameSeq: bigint): Frame | undefined {
    const [oldest] = this.#frames;
    if (!oldest) return undefined;
    const index = frameSeq < oldest.frameSeq ? 0 : Number(frameSeq - oldest.frameSeq) + 1;
    return this.#frames[index];
  }
}
