import { spawn } from "node:child_process";
import { StringDecoder } from "node:string_decoder";
import type { Env } from "../../context.ts";
import { plain } from "../../render/terminal.ts";

export interface EngineProcess {
  readonly program: string;
  readonly args: readonly string[];
  readonly env: Env;
  readonly cwd: string;
  readonly signal: AbortSignal;
  /** Told each line of its output, without what could control a terminal. */
  readonly onLine: (line: string) => void;
}

export interface EngineEnd {
  /** 128 + signal, as shells count, when a signal ended it. */
  readonly exitCode: number;
}

/** Between the request to end and the end. */
const graceMs = 5_000;
const maxLineLength = 2_000;

/**
 * Runs a program in a process group of its own until it ends. The abort signal ends the whole group: politely, then not; so does the end of
 * this process. Throws the signal's reason, or why the program could not be started.
 */
export async function runEngine({ program, args, env, cwd, signal, onLine }: EngineProcess): Promise<EngineEnd> {
  signal.throwIfAborted();
  const child = spawn(program, args, { cwd, env, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  const ended = Promise.withResolvers<EngineEnd>();
  child.once("error", ended.reject);
  child.once("close", (code, killedBy) => ended.resolve({ exitCode: code ?? 128 + (killedBy === "SIGKILL" ? 9 : 15) }));
  for (const output of [child.stdout, child.stderr]) onLines(output, onLine);
  const kill = (how: NodeJS.Signals): void => endGroup(child.pid, how);
  const killNow = (): void => kill("SIGKILL");
  let timer: NodeJS.Timeout | undefined;
  const onAbort = (): void => {
    kill("SIGTERM");
    timer = setTimeout(killNow, graceMs);
  };
  signal.addEventListener("abort", onAbort, { once: true });
  process.once("exit", killNow); // a second Ctrl-C
  try {
    const end = await ended.promise;
    signal.throwIfAborted();
    return end;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
    process.removeListener("exit", killNow);
    if (signal.aborted) killNow(); // whatever it left behind in its group
  }
}

function endGroup(pid: number | undefined, how: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, how);
  } catch {
    // nobody is left
  }
}

/** Lines as they are shown: what a carriage return overwrites is a line of its own, and one without end is cut. */
function onLines(output: NodeJS.ReadableStream, onLine: (line: string) => void): void {
  const decoder = new StringDecoder("utf8");
  let rest = "";
  const show = (line: string): void => {
    const shown = plain(line).trimEnd();
    if (shown !== "") onLine(shown.slice(0, maxLineLength));
  };
  output.on("data", (chunk: Buffer) => {
    const lines = `${rest}${decoder.write(chunk)}`.split(/\r\n|\n|\r/);
    rest = lines.pop() ?? "";
    lines.forEach(show);
    if (rest.length > maxLineLength) {
      show(rest);
      rest = "";
    }
  });
  output.once("end", () => show(rest));
}
