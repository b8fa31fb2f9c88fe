import { type ChildProcess, spawn } from "node:child_process";
import { closeSync } from "node:fs";
import type { Clock } from "@unkey/base";
import { takeFileLock } from "@unkey/daemon";
import { CliFailure, type ExitCode, Interrupted } from "../failure.ts";
import type { Step, StepList, StepState } from "../render/step-list.ts";
import type { Home } from "./home.ts";
import { lastLines, logSize, openLog, rotateLog } from "./log-file.ts";
import { isAlive } from "./process-table.ts";
import {
  type DaemonState,
  type DaemonStatus,
  type PlatformStatus,
  readStatus,
  type TaskStatus,
} from "./status-file.ts";

export interface UpOptions {
  readonly home: Home;
  readonly clock: Clock;
  readonly steps: StepList;
  /** Aborted by Ctrl-C: the start goes on without us. */
  readonly signal: AbortSignal;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** What Node runs to be the supervisor. */
  readonly supervisorArgv: readonly string[];
}

const pollMs = 100;

/** Starts a detached supervisor, or finds the one that runs, and shows the start to its end. */
export async function up(
  options: UpOptions,
): Promise<{ readonly status: PlatformStatus; readonly alreadyUp: boolean }> {
  const { home } = options;
  const alreadyUp = isSupervised(home);
  const logFile = home.logFile("supervisor");
  rotateLog(logFile);
  const logFrom = logSize(logFile);
  const child = alreadyUp ? undefined : startSupervisor(options);
  return { status: await untilUp(options, child, logFrom), alreadyUp };
}

/** True while a supervisor of this home lives. */
export function isSupervised(home: Home): boolean {
  using lock = takeFileLock(home.lockFile);
  return lock === undefined;
}

function startSupervisor({ home, env, supervisorArgv }: UpOptions): ChildProcess {
  const log = openLog(home.logFile("supervisor"));
  try {
    const child = spawn(process.execPath, supervisorArgv, {
      cwd: home.root,
      detached: true,
      stdio: ["ignore", log, log],
      env: { ...env, UNKEY_HOME: home.root, NODE_COMPILE_CACHE: home.compileCacheDir },
    });
    child.unref();
    return child;
  } finally {
    closeSync(log);
  }
}

async function untilUp(options: UpOptions, child: ChildProcess | undefined, logFrom: number): Promise<PlatformStatus> {
  const { home, clock, signal, steps } = options;
  let ours = child;
  child?.once("exit", () => (ours = undefined));
  child?.once("error", () => (ours = undefined));
  // Whose status counts: our supervisor's, or the one that was faster. The file may still hold that of an earlier life.
  let followed: number | undefined;
  for (;;) {
    const wasGone = ours === undefined && !isSupervised(home);
    const status = readStatus(home);
    const isTheirs = ours === undefined && status !== undefined && isAlive(status.supervisor);
    if (status !== undefined && (status.supervisor.pid === child?.pid || isTheirs)) {
      followed = status.supervisor.pid;
    }
    if (status !== undefined && status.supervisor.pid === followed) {
      steps.update(stepsOf(status));
      if (status.phase === "running") return status;
      if (status.phase === "failed" && status.failure !== undefined) throw failureOfStart(status.failure);
      if (wasGone && (status.phase === "stopping" || status.phase === "stopped")) throw stopping();
    }
    if (wasGone) {
      throw new CliFailure("the supervisor ended before the platform was up", {
        nextStep: `Read ${home.logFile("supervisor")}, correct that and run it again.`,
        evidence: lastLines(home.logFile("supervisor"), 8, logFrom),
      });
    }
    await clock.sleep(pollMs, signal).catch((error: unknown) => {
      throw error instanceof Interrupted
        ? new Interrupted("The start goes on: `unkey dev status` shows it, `unkey dev down` ends it.")
        : error;
    });
  }
}

function failureOfStart({ message, nextStep, evidence, exitCode }: NonNullable<PlatformStatus["failure"]>): CliFailure {
  return new CliFailure(message, { nextStep, evidence, exitCode: exitCode as ExitCode });
}

function stopping(): CliFailure {
  return new CliFailure("the platform was stopped meanwhile", { nextStep: "Run `unkey dev up` again." });
}

/** A start as the list of its steps. */
export function stepsOf(status: PlatformStatus): Step[] {
  return [...status.tasks.map(taskStep), ...status.daemons.map(daemonStep)];
}

function taskStep({ name, state, startedAtMs, endedAtMs, detail }: TaskStatus): Step {
  const shown = state === "waiting" ? "pending" : state === "stopped" ? "skipped" : state;
  return { name, state: shown, startedAtMs, endedAtMs, detail };
}

const stepStates = {
  waiting: () => "pending",
  starting: () => "running",
  ready: () => "done",
  restarting: () => "running",
  failed: () => "failed",
  // While a failed start is undone; until it is gone nothing new is to be said.
  stopping: (wasReady) => (wasReady ? "done" : "running"),
  stopped: (wasReady) => (wasReady ? "undone" : "skipped"),
} as const satisfies Record<DaemonState, (wasReady: boolean) => StepState>;

function daemonStep(daemon: DaemonStatus): Step {
  const { name, state, startedAtMs, readyAtMs, addresses, adopted, lastExit } = daemon;
  const where = Object.entries(addresses).map(([endpoint, address]) => `${endpoint} ${address}`);
  const notes = [
    ...(adopted && state === "ready" ? ["adopted"] : []),
    ...where,
    ...(state === "restarting" || (state === "starting" && lastExit !== undefined) ? [`again after: ${lastExit}`] : []),
  ];
  return { name, state: stepStates[state](readyAtMs > 0), startedAtMs, endedAtMs: readyAtMs, detail: notes.join("  ") };
}
