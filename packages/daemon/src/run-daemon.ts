import { type ReadConfig, type RunningDaemon, type ServiceName, type Start, startDaemon } from "./daemon.ts";
import { createLogger } from "./log.ts";
import { ConfigError } from "./settings.ts";

/** sysexits.h's EX_CONFIG: tells a supervisor that another start would fail the same way. */
export const configExitCode = 78;

/**
 * A daemon's whole process life. SIGTERM or SIGINT: refuse, drain, abort at the grace deadline, exit 0 (1 when
 * something did not close). A second signal aborts at once. Wrong settings: every mistake on stderr and exit 78. An
 * error that nobody caught: logged, exit 1, because the state behind it is unknown.
 */
export async function runDaemon<Config>(
  name: ServiceName,
  readConfig: ReadConfig<Config>,
  start: Start<Config>,
): Promise<void> {
  const log = createLogger({ fields: { service: name, pid: process.pid } });
  // The reader of our logs may die before us; a daemon does not.
  process.stdout.on("error", () => undefined);
  process.stderr.on("error", () => undefined);
  for (const event of ["uncaughtException", "unhandledRejection"] as const) {
    process.on(event, (error: unknown) => {
      log.error("uncaught error", { event, error });
      process.exit(1);
    });
  }

  let running: RunningDaemon | undefined;
  let signals = 0;
  const onSignal = (signal: NodeJS.Signals) => {
    signals++;
    log.info("stop asked for", { signal, again: signals > 1 });
    if (signals > 1) {
      if (running === undefined) process.exit(1);
      running.abort();
    } else if (running !== undefined) void stopAndExit(running);
  };
  process.on("SIGTERM", onSignal);
  process.on("SIGINT", onSignal);

  try {
    running = await startDaemon({ name, env: process.env, readConfig, start });
  } catch (error) {
    if (error instanceof ConfigError) {
      for (const mistake of error.mistakes) process.stderr.write(`${name}: ${mistake}\n`);
      log.error("configuration refused", { mistakes: error.mistakes });
      process.exit(configExitCode);
    }
    log.error("start failed", { error });
    process.exit(1);
  }
  if (signals > 0) await stopAndExit(running);
}

async function stopAndExit(daemon: RunningDaemon): Promise<never> {
  const clean = await daemon.stop();
  // Explicit, so that a forgotten handle cannot keep a stopped daemon alive.
  process.exit(clean ? 0 : 1);
}
