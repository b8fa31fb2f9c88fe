import assert from "node:assert/strict";
import { test } from "node:test";
import { routes } from "./routes.ts";

type Target = ReturnType<typeof routes.getAllEntries>[number]["target"];

/** Every command that the help shows, by its words. */
function* shownCommands(target: Target, words: readonly string[] = []): Generator<[string, Target]> {
  if (!("getAllEntries" in target)) {
    yield [words.join(" "), target];
    return;
  }
  for (const { name, target: next, hidden } of target.getAllEntries()) {
    if (!hidden) yield* shownCommands(next, [...words, name.original]);
  }
}

test("every command takes --json", () => {
  const commands = [...shownCommands(routes)];
  assert.ok(commands.length > 20, `${commands.length} commands`);
  const without = commands.filter(([, target]) => "usesFlag" in target && !target.usesFlag("json", "original"));
  assert.deepEqual(
    without.map(([words]) => words),
    [],
  );
});
