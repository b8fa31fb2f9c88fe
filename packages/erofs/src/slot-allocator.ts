import { slotsPerBlock } from "./format.ts";

/**
 * Places inodes, each with its attributes and inline tail, in consecutive blocks. What fits in a block never crosses into
 * the next, as inline tails must not; the tightest gap is taken, so that little of a block stays empty.
 */
export class SlotAllocator {
  blocks = 0;
  /** First free slots of blocks, by the number of free slots at their end. */
  readonly #gaps: number[][] = Array.from({ length: slotsPerBlock }, () => []);

  fitsInGap(slots: number): boolean {
    return this.#smallestGap(slots) !== undefined;
  }

  /** The first of `slots` slots. */
  place(slots: number): number {
    const gap = this.#smallestGap(slots);
    const at = gap?.pop() ?? this.#append(Math.ceil(slots / slotsPerBlock));
    const end = at + slots;
    const free = (slotsPerBlock - (end % slotsPerBlock)) % slotsPerBlock;
    if (free > 0) this.#gaps[free]?.push(end);
    return at;
  }

  #append(blocks: number): number {
    const at = this.blocks * slotsPerBlock;
    this.blocks += blocks;
    return at;
  }

  #smallestGap(slots: number): number[] | undefined {
    for (let free = slots; free < slotsPerBlock; free++) {
      const gap = this.#gaps[free];
      if (gap !== undefined && gap.length > 0) return gap;
    }
    return undefined;
  }
}
