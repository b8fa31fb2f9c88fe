/** One measured number of which less is better. */
export interface Figure {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** The promise in docs/specification.md: the value must not exceed it. */
  readonly goal: number;
}

/** What a file of this folder exports. */
export interface Bench {
  run(): AsyncIterable<Figure>;
}

/** The middle value; of an even count, the lower of the two. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted[Math.floor((sorted.length - 1) / 2)];
  if (middle === undefined) throw new RangeError("no values");
  return middle;
}
