import { spawn } from "node:child_process";
import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { ServiceError } from "@unkey/base";

export interface Tool {
  readonly command: string;
  readonly args: readonly string[];
  /** Debian package that has the command, for the error when it is missing. */
  readonly package: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Bytes for its standard input; none means an empty one. */
  readonly input?: AsyncIterable<Uint8Array>;
  readonly signal: AbortSignal;
}

/** True when a command of that name is in PATH and may be run. */
export async function isInstalled(command: string): Promise<boolean> {
  const directories = (process.env["PATH"] ?? "").split(delimiter).filter((directory) => directory !== "");
  const found = await Promise.allSettled(
    directories.map((directory) => access(join(directory, command), constants.X_OK)),
  );
  return found.some(({ status }) => status === "fulfilled");
}

const maxWordsBytes = 16 * 1024;

/**
 * Runs a host tool to its end and returns what it printed. Throws ROOTFS_TOOL_MISSING, ROOTFS_DISK_FULL or
 * ROOTFS_WRITE_FAILED; an abort kills the tool. These tools print only when something went wrong, so words are a failure
 * too: tar for one reports an attribute that it could not set and still exits 0.
 */
export async function runTool(tool: Tool): Promise<void> {
  tool.signal.throwIfAborted();
  const child = spawn(tool.command, tool.args, {
    stdio: ["pipe", "pipe", "pipe"],
    env: { PATH: process.env["PATH"] ?? "", LC_ALL: "C", ...tool.env },
  });
  let words = "";
  for (const output of [child.stdout, child.stderr]) {
    output.setEncoding("utf8").on("data", (text: string) => {
      words = (words + text).slice(-maxWordsBytes);
    });
  }
  // Resolves when the process is gone, so that nobody removes files under a tool that still writes.
  const closed = new Promise<{ code: number | null; killedBy: NodeJS.Signals | null; spawnError?: Error }>(
    (resolve) => {
      child.once("close", (code, killedBy) => resolve({ code, killedBy }));
      child.once("error", (spawnError) => {
        if (child.pid === undefined) resolve({ code: null, killedBy: null, spawnError });
      });
    },
  );
  const kill = (): void => void child.kill("SIGKILL");
  tool.signal.addEventListener("abort", kill, { once: true });
  let inputError: Error | undefined;
  try {
    const input =
      tool.input === undefined ? Readable.from([]) : Readable.from(coalesced(tool.input), { objectMode: false });
    await pipeline(input, child.stdin);
  } catch (error) {
    inputError = error instanceof Error ? error : new Error(String(error));
  }
  const { code, killedBy, spawnError } = await closed;
  tool.signal.removeEventListener("abort", kill);
  if (spawnError !== undefined && isErrno(spawnError, "ENOENT")) {
    throw new ServiceError("ROOTFS_TOOL_MISSING", `${tool.command} is missing on the host: install ${tool.package}`, {
      cause: spawnError,
    });
  }
  if (spawnError !== undefined) throw spawnError;
  tool.signal.throwIfAborted();
  // A tool that ended early breaks the pipe: its own words say more than EPIPE does.
  if (inputError !== undefined && !isErrno(inputError, "EPIPE")) throw inputError;
  if (code === 0 && words === "" && inputError === undefined) return;
  const cause = new Error(`${tool.command} ended with ${killedBy ?? code}: ${words.trim()}`);
  if (/No space left on device|ENOSPC/.test(words)) {
    throw new ServiceError("ROOTFS_DISK_FULL", "the build's disk is full", { cause });
  }
  throw new ServiceError("ROOTFS_WRITE_FAILED", `${tool.command} could not write the root filesystem`, { cause });
}

const writeBytes = 256 * 1024;

/** Joins small chunks, so that a tree of small files does not cost a system call each. */
async function* coalesced(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of source) {
    if (chunk.length === 0) continue;
    parts.push(chunk);
    bytes += chunk.length;
    if (bytes < writeBytes) continue;
    yield parts.length === 1 ? chunk : Buffer.concat(parts, bytes);
    parts = [];
    bytes = 0;
  }
  if (bytes > 0) yield Buffer.concat(parts, bytes);
}

function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
