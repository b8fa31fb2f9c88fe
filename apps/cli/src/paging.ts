import type { CliContext } from "./context.ts";
import { wholeNumber } from "./numbers.ts";

export type LimitFlag = {
  readonly limit: number;
};

/** Lists ask for one page of this size. */
export const limitFlag = {
  limit: {
    kind: "parsed",
    parse: (input: string) => wholeNumber(input, "--limit", { min: 1, max: 1000 }),
    brief: "At most so many",
    default: "100",
    placeholder: "count",
  },
} as const;

/** Says on stderr that the list goes on. */
export function noteMore(context: CliContext, nextPageToken: string, limit: number): void {
  if (nextPageToken !== "") context.err.write(`There are more than ${limit}; raise --limit (at most 1000).\n`);
}
