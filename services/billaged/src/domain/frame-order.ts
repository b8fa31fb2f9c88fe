/** A hole in the numbers is given up when frames so much newer have come. */
export const reorderFrames = 600;
const maxTimes = 1200;

export interface FrameOrderSnapshot {
  readonly epoch: string;
  readonly contiguous: number;
  readonly ahead: readonly number[];
  readonly timesMs: readonly number[];
}

/** Which frames of a host have come: in the current epoch by number, and lately by time. */
export class FrameOrder {
  epoch = 0n;
  #contiguous = 0;
  #ahead = new Set<number>();
  #timesMs: number[] = [];

  /** All frames of the epoch up to this one have come, or will not come any more. */
  get contiguous(): number {
    return this.#contiguous;
  }

  has(epoch: bigint, frameSeq: number): boolean {
    return epoch === this.epoch && (frameSeq <= this.#contiguous || this.#ahead.has(frameSeq));
  }

  /** Notes a frame of the current or a later epoch. */
  note(epoch: bigint, frameSeq: number, atMs: number): void {
    if (epoch !== this.epoch) {
      this.epoch = epoch;
      this.#contiguous = 0;
      this.#ahead.clear();
    }
    // Senders begin with the oldest frame they still have: what came before was confirmed to a log that is lost.
    if (this.#contiguous === 0 && this.#ahead.size === 0 && frameSeq > reorderFrames) this.#contiguous = frameSeq - 1;
    this.#ahead.add(frameSeq);
    this.#advance();
    while (this.#ahead.size > reorderFrames) {
      // Whoever sent them dropped what is missing; waiting longer would never acknowledge anything again.
      this.#contiguous = Math.min(...this.#ahead) - 1;
      this.#advance();
    }
    this.#noteTime(atMs);
  }

  /** True when a frame was taken at an instant between the two, both exclusive. */
  heardBetween(fromMs: number, toMs: number): boolean {
    return this.#timesMs.some((timeMs) => timeMs > fromMs && timeMs < toMs);
  }

  #advance(): void {
    while (this.#ahead.delete(this.#contiguous + 1)) this.#contiguous += 1;
  }

  #noteTime(atMs: number): void {
    const times = this.#timesMs;
    let place = times.length;
    while (place > 0 && (times[place - 1] ?? 0) > atMs) place -= 1;
    if (place === times.length) times.push(atMs);
    else times.splice(place, 0, atMs);
    if (times.length > 2 * maxTimes) times.splice(0, times.length - maxTimes);
  }

  snapshot(): FrameOrderSnapshot {
    return {
      epoch: this.epoch.toString(),
      contiguous: this.#contiguous,
      ahead: [...this.#ahead],
      timesMs: this.#timesMs,
    };
  }

  static restore(snapshot: FrameOrderSnapshot): FrameOrder {
    const order = new FrameOrder();
    order.epoch = BigInt(snapshot.epoch);
    order.#contiguous = snapshot.contiguous;
    order.#ahead = new Set(snapshot.ahead);
    order.#timesMs = [...snapshot.timesMs];
    return order;
  }
}
