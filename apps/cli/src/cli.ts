import {
  type ApplicationText,
  ArgumentScannerError,
  buildApplication,
  text_en as defaultText,
  ExitCode,
  formatMessageForArgumentScannerError,
  run,
} from "@stricli/core";
import type { CliContext } from "./context.ts";
import { type CliFailure, exitCodes, failureOf, usageFailure } from "./failure.ts";
import { renderFailure } from "./render/failure.ts";
import { routes } from "./routes.ts";
import { version } from "./version.ts";

/** Runs one command line and answers the exit code of the process. */
export async function runCli(argv: readonly string[], context: CliContext): Promise<number> {
  const json = argv.includes("--json");
  const show = (failure: CliFailure) => renderFailure(failure, { terminal: context.err, json, env: context.env });
  const application = buildApplication(routes, {
    name: "unkey",
    versionInfo: { currentVersion: version },
    scanner: { caseStyle: "allow-kebab-for-camel", allowArgumentEscapeSequence: true },
    // Our failures bring their own colours.
    documentation: { disableAnsiColor: true, onlyRequiredInUsageLine: true },
    localization: { text: messages(show, argv) },
    determineExitCode: (error) => failureOf(error).exitCode,
  });
  // stricli reports through a process object; this one keeps its codes from the real process until they are translated.
  const streams = { stdout: asStream(context.out), stderr: asStream(context.err), env: {} };
  const reported: typeof streams & { exitCode?: number | string | null } = streams;
  await run(application, argv, { ...context, process: reported });
  return translate(Number(reported.exitCode ?? exitCodes.ok));
}

function asStream(terminal: CliContext["out"]) {
  return { write: (text: string) => terminal.write(text) };
}

/** stricli's own codes are negative: a command line that it could not read is wrong usage. */
function translate(code: number): number {
  if (code === ExitCode.UnknownCommand || code === ExitCode.InvalidArgument) return exitCodes.usage;
  return code < 0 ? exitCodes.failed : code;
}

/** Everything that stricli says on stderr, in the form of our failures. Its writer adds the last newline. */
function messages(show: (failure: CliFailure) => string, argv: readonly string[]): ApplicationText {
  const help = () => `Run \`${["unkey", ...commandPath(argv), "--help"].join(" ")}\` to see what there is.`;
  const failed = (error: unknown) => show(failureOf(error));
  return {
    ...defaultText,
    noCommandRegisteredForInput: ({ input, corrections }) =>
      show(
        usageFailure(
          `there is no command "${input}"`,
          corrections.length > 0 ? `Did you mean ${corrections.join(" or ")}?` : help(),
        ),
      ),
    exceptionWhileParsingArguments: (error) =>
      show(
        error instanceof ArgumentScannerError
          ? usageFailure(formatMessageForArgumentScannerError(error, parseMessages), help())
          : failureOf(error),
      ),
    exceptionWhileLoadingCommandFunction: failed,
    exceptionWhileLoadingCommandContext: failed,
    exceptionWhileRunningCommand: failed,
    commandErrorResult: failed,
  };
}

/** The words of a command line that name its command. */
function commandPath(argv: readonly string[]): string[] {
  const [noun = "", verb = ""] = argv;
  const target = routes.getRoutingTargetForInput(noun);
  if (target === undefined) return [];
  const hasVerb = "getRoutingTargetForInput" in target && target.getRoutingTargetForInput(verb) !== undefined;
  return hasVerb ? [noun, verb] : [noun];
}

/** stricli's own words, except where they say less than is known. */
const parseMessages: Parameters<typeof formatMessageForArgumentScannerError>[1] = {
  ArgumentParseError: ({ externalFlagNameOrPlaceholder: name, exception }) => {
    const why = exception instanceof Error ? exception.message : String(exception);
    return why.includes(name) ? why : `${name}: ${why}`;
  },
  UnsatisfiedPositionalError: ({ placeholder }) => `the argument <${placeholder}> is missing`,
  // The argument itself is not repeated: it may be a key that does not belong on a command line.
  UnexpectedPositionalError: ({ expectedCount }) =>
    expectedCount === 0
      ? "this command takes no arguments"
      : `this command takes ${expectedCount} argument(s), not more`,
  FlagNotFoundError: ({ input, corrections }) =>
    corrections.length > 0
      ? `there is no flag "--${input}"; did you mean ${corrections.map((name) => `--${name}`).join(" or ")}?`
      : `there is no flag "--${input}"`,
};
