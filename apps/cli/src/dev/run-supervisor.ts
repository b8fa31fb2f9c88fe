import { takeFileLock } from "@unkey/daemon";
import { CliFailure, exitCodes } from "../failure.ts";
import { Supervisor, type SupervisorOptions } from "./supervisor.ts";

export interface RunOptions extends SupervisorOptions {
  /** Resolves when the platform shall stop. */
  readonly stopAsked: Promise<void>;
  /** Runs after that, while all daemons still do. */
  readonly beforeStop?: () => Promise<void>;
}

/** A supervisor's whole life under the lock of its home. Throws when the start fails or another supervisor has the lock. */
export async function runSupervisor(options: RunOptions): Promise<void> {
  using lock = takeFileLock(options.home.lockFile);
  if (lock === undefined) {
    throw new CliFailure(`another supervisor runs the platform in ${options.home.root}`, {
      nextStep: "`unkey dev status` shows it.",
      exitCode: exitCodes.failed,
    });
  }
  const supervisor = new Supervisor(options);
  const started = supervisor.start();
  await Promise.race([started, options.stopAsked]);
  await options.stopAsked;
  await options.beforeStop?.();
  await supervisor.stop();
  await started;
}

/** Resolves at SIGTERM: the request of `unkey dev down` and of the host's own shutdown. */
export function terminationAsked(): Promise<void> {
  const asked = Promise.withResolvers<void>();
  process.on("SIGTERM", () => asked.resolve());
  return asked.promise;
}
