import { join, relative } from "node:path";
import type { TestEvent } from "node:test/reporters";

/** A test that did not run, and why. */
export interface SkippedTest {
  /** Path from the repository's root. */
  readonly file: string;
  readonly name: string;
  readonly reason: string;
}

const root = join(import.meta.dirname, "..");

/** A node:test reporter that writes one JSON line for each skipped test. */
export default async function* skipReporter(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  for await (const event of source) {
    if (event.type !== "test:pass" || event.data.skip === undefined) continue;
    const reason = typeof event.data.skip === "string" ? event.data.skip : "no reason given";
    const skipped: SkippedTest = { file: relative(root, event.data.file ?? ""), name: event.data.name, reason };
    yield `${JSON.stringify(skipped)}\n`;
  }
}
