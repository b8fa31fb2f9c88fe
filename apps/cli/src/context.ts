import { homedir } from "node:os";
import { resolve } from "node:path";
import type { CommandContext } from "@stricli/core";
import { type Clock, isErrno, systemClock } from "@unkey/base";
import { Interrupted } from "./failure.ts";
import { type Terminal, terminalOf } from "./render/terminal.ts";

export type Env = Readonly<Record<string, string | undefined>>;

/** Where a command reads what a person or a pipe types. */
export type Input = NodeJS.ReadableStream & { readonly isTTY?: boolean };

/** What a command may touch of the process that runs it. */
export interface CliContext extends CommandContext {
  readonly process: CommandContext["process"] & { exitCode?: number | string | null | undefined };
  readonly out: Terminal;
  readonly err: Terminal;
  readonly input: Input;
  readonly env: Env;
  readonly cwd: string;
  /** UNKEY_HOME: the profile, and the data directory of a platform on this host. */
  readonly home: string;
  readonly clock: Clock;
  /** Aborted with `Interrupted` at Ctrl-C. */
  readonly signal: AbortSignal;
}

export function unkeyHome(env: Env, cwd: string): string {
  const set = env["UNKEY_HOME"];
  return set === undefined || set === "" ? resolve(homedir(), ".unkey") : resolve(cwd, set);
}

/** The context of the real process. The first Ctrl-C aborts the signal, the second ends the process. */
export function processContext(): CliContext {
  const { env, stdin, stdout, stderr } = process;
  const interrupt = new AbortController();
  process.on("SIGINT", () => {
    if (interrupt.signal.aborted) process.exit(130);
    interrupt.abort(new Interrupted());
  });
  // The reader of a pipe may go first, as `head` does.
  stdout.on("error", (error) => process.exit(isErrno(error, "EPIPE") ? 0 : 1));
  stderr.on("error", () => process.exit(1));
  const cwd = process.cwd();
  return {
    process,
    out: terminalOf(stdout, env),
    err: terminalOf(stderr, env),
    input: stdin,
    env,
    cwd,
    home: unkeyHome(env, cwd),
    clock: systemClock,
    signal: interrupt.signal,
  };
}
