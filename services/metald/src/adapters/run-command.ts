import { spawn } from "node:child_process";

/** A host program failed; `message` holds its last words and never its input. */
export class CommandFailed extends Error {
  readonly stderr: string;

  constructor(command: string, outcome: string, stderr: string, cause?: unknown) {
    super(`${command} ${outcome}${stderr ? `: ${stderr.trim().slice(-500)}` : ""}`, { cause });
    this.name = "CommandFailed";
    this.stderr = stderr;
  }
}

export interface CommandOptions {
  /** Written to the program's standard input. */
  readonly input?: string;
  /** The program is killed after this long: a wedged kernel lock must not wedge metald. */
  readonly timeoutMs?: number;
}

const defaultTimeoutMs = 10_000;
const maxOutputBytes = 4 * 1024 * 1024;

/** Runs a program without a shell and yields its standard output. Throws CommandFailed on any other end than exit 0. */
export async function runCommand(
  command: string,
  args: readonly string[],
  { input = "", timeoutMs = defaultTimeoutMs }: CommandOptions = {},
): Promise<string> {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], env: { PATH: searchPath, LC_ALL: "C" } });
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let stdout = "";
  let stderr = "";
  const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
  child.on("error", (cause) => reject(new CommandFailed(command, "could not be started", "", cause)));
  child.stdin.on("error", () => undefined); // it may exit before it has read everything; its exit status tells
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    if (stdout.length > maxOutputBytes) child.kill("SIGKILL");
    else stdout += chunk;
  });
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
    if (stderr.length < maxOutputBytes) stderr += chunk;
  });
  child.on("close", (code, signal) => {
    if (code === 0) resolve(stdout);
    else reject(new CommandFailed(command, signal ? `died of ${signal}` : `ended with status ${code}`, stderr));
  });
  child.stdin.end(input);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
  }
}

// Administrators' programs live in sbin, which the PATH of an ordinary login lacks.
const searchPath = `${process.env["PATH"] ?? ""}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin`;
