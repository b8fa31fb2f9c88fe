import { spawn } from "node:child_process";
import { createReadStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { ServiceError } from "@unkey/base";

export interface Tool {
  readonly command: string;
  readonly args: readonly string[];
  /** Debian package that has the command, for the error when it is missing. */
  readonly package: string;
  readonly env?: Readonly<Record<string, string>>;
  /** File for its standard input; none means an empty one. */
  readonly inputPath?: string;
  /** Lines on its standard error that say nothing is wrong. Any other line is a failure: some tools go on and exit 0. */
  readonly harmless?: RegExp;
  readonly signal: AbortSignal;
}

const maxWordsBytes = 16 * 1024;

/**
 * Runs a host tool to its end; what it prints to standard output is dropped. Throws ROOTFS_TOOL_MISSING, ROOTFS_DISK_FULL or
 * ROOTFS_WRITE_FAILED; an abort kills the tool.
 */
export async function runTool(tool: Tool): Promise<void> {
  tool.signal.throwIfAborted();
  const child = spawn(tool.command, tool.args, {
    stdio: [tool.inputPath === undefined ? "ignore" : "pipe", "ignore", "pipe"],
    // Debian keeps file system tools out of an ordinary user's PATH.
    env: { PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`, LC_ALL: "C", ...tool.env },
  });
  let words = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    words = (words + text).slice(0, maxWordsBytes);
  });
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
  let inputError: unknown;
  if (tool.inputPath !== undefined && child.stdin !== null) {
    await pipeline(createReadStream(tool.inputPath), child.stdin).catch((error: unknown) => {
      inputError = error; // mostly that the tool ended early: its own words say more
    });
  }
  const { code, killedBy, spawnError } = await closed;
  tool.signal.removeEventListener("abort", kill);
  if (spawnError !== undefined && "code" in spawnError && spawnError.code === "ENOENT") {
    throw new ServiceError("ROOTFS_TOOL_MISSING", `${tool.command} is missing on the host: install ${tool.package}`, {
      cause: spawnError,
    });
  }
  if (spawnError !== undefined) throw spawnError;
  tool.signal.throwIfAborted();
  const complaints = words.split("\n").filter((line) => line.trim() !== "" && tool.harmless?.test(line) !== true);
  if (code === 0 && complaints.length === 0 && inputError === undefined) return;
  const cause = new Error(`${tool.command} ended with ${killedBy ?? code}: ${complaints.join("\n")}`, {
    cause: inputError,
  });
  if (/No space left on device|ENOSPC/.test(words)) {
    throw new ServiceError("ROOTFS_DISK_FULL", "the build's disk is full", { cause });
  }
  throw new ServiceError("ROOTFS_WRITE_FAILED", `${tool.command} could not write the root filesystem`, { cause });
}
