import assert from "node:assert/strict";
import { test } from "node:test";
import { errorCatalogue } from "@unkey/base";
import { cliFields, cliNextSteps } from "./connection/cli-words.ts";
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

test("every flag that a next step or a field is called by exists", () => {
  const flags = [...Object.values(cliNextSteps), ...Object.values(cliFields)].flatMap((words) =>
    Array.from(words.matchAll(/--([a-z-]+)/g), (match) => match[1] ?? ""),
  );
  assert.ok(flags.length > 10);
  const commands = [...shownCommands(routes)];
  for (const flag of new Set(flags).difference(new Set(["help"]))) {
    const name = flag.replaceAll(/-([a-z])/g, (_dash, letter: string) => letter.toUpperCase());
    assert.ok(
      commands.some(([, target]) => "usesFlag" in target && target.usesFlag(name, "original")),
      `no command takes --${flag}`,
    );
  }
});

test("every command that a next step names exists", () => {
  const nextSteps: Array<[string, string]> = [
    ...Object.entries(errorCatalogue).map(([reason, { nextStep }]): [string, string] => [reason, nextStep]),
    ...Object.entries(cliNextSteps),
  ];
  const named = nextSteps.flatMap(([reason, nextStep]) =>
    Array.from(nextStep.matchAll(/`unkey ([^`]+)`/g), (match) => ({ reason, words: (match[1] ?? "").split(" ") })),
  );
  assert.ok(named.length > 5);
  for (const { reason, words } of named) {
    let target: Target | undefined = routes;
    for (const word of words) {
      // What follows a command is its arguments.
      if (target !== undefined && "getRoutingTargetForInput" in target) target = target.getRoutingTargetForInput(word);
    }
    const isRunnable = target !== undefined && (!("getDefaultCommand" in target) || target.getDefaultCommand());
    assert.ok(isRunnable, `${reason} names \`unkey ${words.join(" ")}\``);
  }
});
