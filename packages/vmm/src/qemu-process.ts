import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, constants, openSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { ServiceError } from "@unkey/base";
import type { VmRecord } from "./hypervisor.ts";
import { identifyProcess, isSameProcess } from "./process-identity.ts";

const lastWordsBytes = 2000;
const exitCheckMs = 20;
/** A monitor's sockets close this long before the process is gone, at most. */
const hangUpPatienceMs = 1000;

/**
 * The operating-system side of one monitor: ours as a child, or adopted after the process that started it died. It belongs
 * to a session of its own and holds no pipe to us, so nothing that happens to us reaches it.
 */
export class QemuProcess {
  readonly record: VmRecord;
  /** Resolves when a child has ended; an adopted process is watched through its socket instead. */
  readonly exited: Promise<void>;

  constructor(record: VmRecord, child: ChildProcess | undefined) {
    this.record = record;
    this.exited = new Promise((resolve) => {
      if (child === undefined) return;
      if (child.exitCode !== null || child.signalCode !== null) resolve();
      else child.once("exit", () => resolve());
    });
  }

  get isAlive(): boolean {
    return isSameProcess(this.record);
  }

  /** SIGKILL, unless the pid is somebody else's by now. */
  kill(): void {
    if (!this.isAlive) return;
    try {
      process.kill(this.record.pid, "SIGKILL");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
  }

  /** True as soon as the process is gone, false when it is still there after `ms`. Meant for one that is about to end. */
  async isGoneWithin(ms = hangUpPatienceMs): Promise<boolean> {
    for (let waitedMs = 0; waitedMs < ms; waitedMs += exitCheckMs) {
      if (!this.isAlive) return true;
      await delay(exitCheckMs);
    }
    return !this.isAlive;
  }
}

export interface SpawnRequest {
  readonly command: readonly [program: string, ...args: string[]];
  readonly dir: string;
  readonly monitorLog: string;
  readonly driver: string;
}

/** Starts a monitor detached from us. Throws VM_LAUNCH_FAILED when not even its launcher starts. */
export async function spawnMonitor(request: SpawnRequest): Promise<{ process: QemuProcess; child: ChildProcess }> {
  const [program, ...args] = request.command;
  const log = openPrivateLog(request.monitorLog);
  try {
    const child = spawn(program, args, {
      cwd: request.dir,
      detached: true, // setsid(2): no signal of our terminal or service manager's process group reaches it
      stdio: ["ignore", log, log],
      env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C" }, // ours may hold secrets
    });
    const failure = await new Promise<Error | undefined>((resolve) => {
      child.once("spawn", () => resolve(undefined));
      child.once("error", resolve);
    });
    child.unref();
    const identity = child.pid === undefined ? undefined : identifyProcess(child.pid);
    if (failure !== undefined || identity === undefined) {
      throw launchFailed(request.monitorLog, failure);
    }
    const record = { driver: request.driver, dir: request.dir, ...identity };
    return { process: new QemuProcess(record, child), child };
  } finally {
    closeSync(log);
  }
}

/** VM_LAUNCH_FAILED with the last words of whichever program of the launch failed. */
export function launchFailed(monitorLog: string, cause?: unknown): ServiceError {
  let words = "";
  try {
    words = readFileSync(monitorLog, "utf8").slice(-lastWordsBytes).trim();
  } catch {
    // It said nothing.
  }
  const message = words === "" ? "the monitor did not start and said nothing" : `the monitor did not start: ${words}`;
  return new ServiceError("VM_LAUNCH_FAILED", message, cause === undefined ? {} : { cause });
}

/** A log in a folder that the confined monitor can write to: a link put there is not followed. Truncated. */
function openPrivateLog(path: string): number {
  return openSync(
    path,
    constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_APPEND | constants.O_NOFOLLOW,
    0o600,
  );
}
