import { execFile } from "node:child_process";
import { ServiceError } from "@unkey/base";

export interface CommandResult {
  readonly code: number;
  readonly stdout: string;
}

const maxOutputBytes = 16 * 1024 * 1024;

/**
 * Runs a host program to its end. Throws GUEST_ASSETS_UNAVAILABLE with its last words when it is missing or fails
 * (`mayFail`: only when missing), and the signal's reason when aborted.
 */
export async function runCommand(
  program: string,
  args: readonly string[],
  signal: AbortSignal,
  options: { readonly cwd?: string; readonly mayFail?: boolean } = {},
): Promise<CommandResult> {
  const { promise, resolve, reject } = Promise.withResolvers<CommandResult>();
  const env = { ...process.env, LC_ALL: "C", DEBIAN_FRONTEND: "noninteractive" };
  const spawnOptions = {
    env,
    signal,
    maxBuffer: maxOutputBytes,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  };
  execFile(program, args, spawnOptions, (error, stdout, stderr) => {
    if (error === null) {
      resolve({ code: 0, stdout });
    } else if (signal.aborted) {
      reject(signal.reason instanceof Error ? signal.reason : error);
    } else if (error.code === "ENOENT") {
      const message = `${program} is not on this host; guest kernels come from Debian packages through apt and dpkg`;
      reject(new ServiceError("GUEST_ASSETS_UNAVAILABLE", message, { cause: error }));
    } else if (options.mayFail && typeof error.code === "number") {
      resolve({ code: error.code, stdout });
    } else {
      const lastWords = stderr.trim().split("\n").slice(-3).join("; ");
      const message = `${program} ${args[0] ?? ""} failed: ${lastWords}`;
      reject(new ServiceError("GUEST_ASSETS_UNAVAILABLE", message, { cause: error }));
    }
  });
  return promise;
}
