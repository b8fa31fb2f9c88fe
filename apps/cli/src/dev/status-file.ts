import { readFileSync } from "node:fs";
import { writePrivateFile } from "../private-file.ts";
import type { Home } from "./home.ts";
import type { ProcessIdentity } from "./process-table.ts";

export type DaemonState = "waiting" | "starting" | "ready" | "restarting" | "failed" | "stopping" | "stopped";

export interface DaemonStatus {
  readonly name: string;
  readonly state: DaemonState;
  readonly process?: ProcessIdentity;
  /** Taken over from an earlier supervisor rather than started. */
  readonly adopted: boolean;
  /** When this process was started or adopted; 0 before. */
  readonly startedAtMs: number;
  /** When it became ready; 0 before. */
  readonly readyAtMs: number;
  readonly restarts: number;
  /** How the process before this one ended. */
  readonly lastExit?: string;
  /** `host:port` by endpoint, such as rpc, health or ingress. */
  readonly addresses: Readonly<Record<string, string>>;
}

/** Work before daemons, such as certificates or the guest's kernel. */
export interface TaskStatus {
  readonly name: string;
  readonly state: "waiting" | "running" | "done" | "failed" | "stopped";
  readonly startedAtMs: number;
  readonly endedAtMs: number;
  readonly detail: string;
}

export interface Failure {
  readonly message: string;
  readonly nextStep: string;
  readonly evidence: readonly string[];
  readonly exitCode: number;
}

export interface PlatformStatus {
  readonly supervisor: ProcessIdentity;
  readonly startedAtMs: number;
  readonly phase: "starting" | "running" | "stopping" | "stopped" | "failed";
  readonly failure?: Failure;
  readonly tasks: readonly TaskStatus[];
  readonly daemons: readonly DaemonStatus[];
}

export function writeStatus(home: Home, status: PlatformStatus): void {
  // After a crash of the host nothing of this is true any more.
  writePrivateFile(home.statusFile, `${JSON.stringify(status, undefined, 2)}\n`, { durable: false });
}

/** What the last supervisor wrote; it may be gone since. */
export function readStatus(home: Home): PlatformStatus | undefined {
  try {
    return JSON.parse(readFileSync(home.statusFile, "utf8")) as PlatformStatus;
  } catch {
    return undefined;
  }
}
