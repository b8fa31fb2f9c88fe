import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { systemClock } from "@unkey/base";
import { runCli } from "../src/cli.ts";
import type { CliContext, Env } from "../src/context.ts";
import { findDaemon } from "../src/dev/daemon-process.ts";
import { findProcesses, signalProcess } from "../src/dev/process-table.ts";
import type { Terminal } from "../src/render/terminal.ts";

export interface Run {
  readonly exitCode: number;
  readonly out: string;
  readonly err: string;
}

export interface RunOptions {
  readonly home: string;
  readonly env?: Env;
  readonly cwd?: string;
  /** What a pipe on stdin holds. */
  readonly stdin?: string;
  readonly signal?: AbortSignal;
  /** Told of each piece on stdout, to act in the middle of a command. */
  readonly onOut?: (text: string) => void;
  readonly onOutBytes?: (bytes: Buffer) => void;
  /** As if stdout and stderr were a terminal. */
  readonly live?: boolean;
}

/** Runs one command line in this process, with pipes instead of a terminal. */
export async function unkey(options: RunOptions, ...argv: string[]): Promise<Run> {
  const {
    home,
    env = {},
    cwd = home,
    stdin = "",
    signal = new AbortController().signal,
    onOut,
    live = false,
  } = options;
  const written = { out: "", err: "" };
  const terminal = (stream: "out" | "err"): Terminal => ({
    write: (text) => {
      const piece = typeof text === "string" ? text : Buffer.from(text).toString("utf8");
      written[stream] += piece;
      if (stream === "out") {
        onOut?.(piece);
        options.onOutBytes?.(Buffer.from(text));
      }
    },
    live,
    columns: Number.POSITIVE_INFINITY,
    color: false,
  });
  const context: CliContext = {
    process: { stdout: { write: () => undefined }, stderr: { write: () => undefined } },
    out: terminal("out"),
    err: terminal("err"),
    input: Readable.from([stdin]),
    env,
    cwd,
    home,
    clock: systemClock,
    signal,
  };
  const exitCode = await runCli(argv, context);
  return { exitCode, ...written };
}

/** A folder that is gone at the end of its block. */
export async function temporaryFolder(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(tmpdir(), "unkey-cli-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true, maxRetries: 20 }) };
}

/** Ends a supervisor and its daemons without asking, whatever a test left running, and waits until they are gone. */
export async function endPlatform(root: string, mains: readonly string[]): Promise<void> {
  const supervisors = () => [
    ...findProcesses("supervise", `UNKEY_HOME=${root}`),
    ...findProcesses(root, `UNKEY_HOME=${root}`),
  ];
  const daemons = () => mains.flatMap((main) => findDaemon(main, root));
  // Supervisors first: they would start daemons again.
  for (const left of [supervisors, daemons]) {
    while (left().length > 0) {
      for (const identity of left()) signalProcess(identity, "SIGKILL");
      await systemClock.sleep(20);
    }
  }
}
