import { type Reading, samplesPerWindow, valueCount } from "./sample.ts";

const stride = valueCount + 2;
const initialCapacity = 64;
/** Twice what a window calls for, so that a hasty clock cannot make it grow without end. */
const maxCapacity = 2 * samplesPerWindow;

/**
 * The readings of one series in one window, in the order of their numbers whatever the order they came in. A number that
 * is there already is ignored. When it is full, the newest reading replaces the one before it: counters lose nothing.
 */
export class SampleBuffer {
  readonly startMs: number;
  #rows = new Float64Array(initialCapacity * stride);
  #length = 0;

  constructor(startMs: number) {
    this.startMs = startMs;
  }

  get length(): number {
    return this.#length;
  }

  seq(index: number): number {
    return this.#rows[index * stride] ?? Number.NaN;
  }

  atMs(index: number): number {
    return this.#rows[index * stride + 1] ?? Number.NaN;
  }

  value(index: number, column: number): number {
    return this.#rows[index * stride + 2 + column] ?? Number.NaN;
  }

  /** True when at least one value of the reading could be read. */
  isReadable(index: number): boolean {
    for (let column = 0; column < valueCount; column++) {
      if (!Number.isNaN(this.value(index, column))) return true;
    }
    return false;
  }

  /** Adds reading `index` of the columns; false when its number is there already or no longer fits. */
  add(seq: number, atMs: number, columns: readonly (readonly number[])[], index: number): boolean {
    let place = this.#placeOf(seq);
    if (place < this.#length && this.seq(place) === seq) return false;
    if (this.#length === maxCapacity) {
      if (place < this.#length) return false;
      place = this.#length - 1;
    } else {
      this.#open(place);
    }
    const offset = place * stride;
    const rows = this.#rows;
    rows[offset] = seq;
    rows[offset + 1] = atMs;
    for (let column = 0; column < valueCount; column++)
      rows[offset + 2 + column] = columns[column]?.[index] ?? Number.NaN;
    return true;
  }

  addReading(reading: Reading): boolean {
    return this.add(
      reading.seq,
      reading.atMs,
      reading.values.map((value) => [value]),
      0,
    );
  }

  /** The first `limit` readings. */
  readings(limit: number = this.#length): Reading[] {
    return Array.from({ length: Math.min(limit, this.#length) }, (_, index) => ({
      seq: this.seq(index),
      atMs: this.atMs(index),
      values: Array.from({ length: valueCount }, (_, column) => this.value(index, column)),
    }));
  }

  /** Where a reading of that number stands or would stand. */
  #placeOf(seq: number): number {
    if (this.#length === 0 || seq > this.seq(this.#length - 1)) return this.#length;
    let low = 0;
    let high = this.#length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.seq(middle) < seq) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #open(place: number): void {
    if ((this.#length + 1) * stride > this.#rows.length) {
      const grown = new Float64Array(Math.min(this.#rows.length * 2, maxCapacity * stride));
      grown.set(this.#rows);
      this.#rows = grown;
    }
    if (place < this.#length) this.#rows.copyWithin((place + 1) * stride, place * stride, this.#length * stride);
    this.#length += 1;
  }
}
