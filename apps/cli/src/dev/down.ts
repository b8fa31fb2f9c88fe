import type { Clock } from "@unkey/base";
import { takeFileLock } from "@unkey/daemon";
import { CliFailure, failureOf } from "../failure.ts";
import { findDaemon, stopProcess } from "./daemon-process.ts";
import type { DaemonSpec } from "./daemon-spec.ts";
import type { Home } from "./home.ts";
import { signalProcess } from "./process-table.ts";
import { type PlatformStatus, readStatus } from "./status-file.ts";
import { inReverse } from "./supervisor.ts";

export interface DownOptions {
  readonly home: Home;
  readonly daemons: readonly DaemonSpec[];
  readonly clock: Clock;
  /** Ends the VMs of this host; undefined leaves them running for the next `up` to find. */
  readonly drain?: () => Promise<void>;
  readonly onStatus?: (status: PlatformStatus) => void;
}

export interface DownResult {
  /** Daemons that were running. */
  readonly stopped: readonly string[];
}

const pollMs = 100;
const stopDeadlineMs = 90_000;

/**
 * VMs first, while everything that meters and records them still runs; then the daemons in reverse order, by their
 * supervisor or, when that was killed, by us. Nothing running is success.
 */
export async function down(options: DownOptions): Promise<DownResult> {
  const { home, daemons, drain, clock } = options;
  const running = daemons.filter(({ main }) => findDaemon(main, home.root).length > 0);
  if (drain !== undefined && running.some(({ name }) => name === "metald")) {
    try {
      await drain();
    } catch (error) {
      const { message, exitCode } = failureOf(error);
      throw new CliFailure(`the VMs could not be stopped, so everything still runs: ${message}`, {
        nextStep: "Run it again, or leave the VMs running with `unkey dev down --keep-vms`.",
        exitCode,
        cause: error,
      });
    }
  }
  using _lock = await endSupervisor(options);
  // Under the lock nobody starts a daemon, so what is found now is all there is.
  await inReverse(daemons, async ({ main }) => {
    await Promise.all(findDaemon(main, home.root).map((identity) => stopProcess(identity, clock)));
  });
  return { stopped: running.map(({ name }) => name) };
}

/** Ends the supervisor, which ends its daemons, and takes its lock. */
async function endSupervisor({ home, clock, onStatus }: DownOptions): Promise<Disposable> {
  for (let waitedMs = 0; ; waitedMs += pollMs) {
    const lock = takeFileLock(home.lockFile);
    if (lock !== undefined) return lock;
    const status = readStatus(home);
    if (status !== undefined) {
      onStatus?.(status);
      // Again at each look: a supervisor that has just taken the lock may not have heard the first.
      if (status.phase === "starting" || status.phase === "running") signalProcess(status.supervisor, "SIGTERM");
    }
    if (waitedMs > stopDeadlineMs) {
      throw new CliFailure(`the supervisor (pid ${status?.supervisor.pid ?? "unknown"}) does not stop`, {
        nextStep: `Read ${home.logFile("supervisor")}; then end it with kill and run \`unkey dev down\` again.`,
      });
    }
    await clock.sleep(pollMs);
  }
}
