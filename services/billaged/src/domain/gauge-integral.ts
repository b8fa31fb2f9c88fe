const exactSum = 2 ** 52;

/**
 * Sum of value × time, exact: products and short sums stay within the integers that a double holds, longer sums are kept
 * as bigint. Values are whole bytes below 2^53 and durations whole milliseconds.
 */
export class GaugeIntegral {
  #big = 0n;
  #small = 0;
  #min = Number.POSITIVE_INFINITY;
  #max = 0;

  /** `value` held for `durationMs`. */
  add(value: number, durationMs: number): void {
    this.see(value);
    const product = value * durationMs;
    if (product >= exactSum) {
      this.#big += BigInt(value) * BigInt(durationMs);
      return;
    }
    this.#small += product;
    if (this.#small >= exactSum) {
      this.#big += BigInt(this.#small);
      this.#small = 0;
    }
  }

  /** Lets `value` count for the lowest and the highest. */
  see(value: number): void {
    if (value < this.#min) this.#min = value;
    if (value > this.#max) this.#max = value;
  }

  get byteMs(): bigint {
    return this.#big + BigInt(this.#small);
  }

  get minBytes(): number {
    return Number.isFinite(this.#min) ? this.#min : 0;
  }

  get maxBytes(): number {
    return this.#max;
  }
}
