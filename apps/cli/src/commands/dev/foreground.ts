import type { CliContext } from "../../context.ts";
import { drainHost } from "../../dev/drain.ts";
import { openHome } from "../../dev/home.ts";
import { unkeyPlatform } from "../../dev/platform.ts";
import { runSupervisor, terminationAsked } from "../../dev/run-supervisor.ts";
import { stepsOf } from "../../dev/up.ts";
import { failureOf } from "../../failure.ts";
import { StepList } from "../../render/step-list.ts";
import { printStatus } from "./status.ts";
import type { UpFlags } from "./up.ts";

/** Runs the platform in this process's terminal. Ctrl-C stops VMs and daemons in order, SIGTERM the daemons only. */
export async function foreground(context: CliContext, flags: UpFlags): Promise<void> {
  const { env, clock, err, signal } = context;
  const home = openHome(context.home);
  const steps = new StepList(err, () => clock.nowMs(), { nameWidth: "billing-aggregator".length });
  let shown = false;
  const log = (line: string) => shown && err.write(`${line}\n`);
  const interrupted = Promise.withResolvers<void>();
  signal.addEventListener("abort", () => interrupted.resolve(), { once: true });
  await runSupervisor({
    home,
    platform: unkeyPlatform(home, env),
    ports: flags.ports,
    env,
    clock,
    log,
    stopAsked: Promise.race([interrupted.promise, terminationAsked()]),
    onStatus: (status) => {
      if (shown) return;
      steps.update(stepsOf(status));
      if (status.phase === "starting") return;
      shown = true;
      steps[Symbol.dispose]();
      if (status.phase === "running") void printStatus(context, home, flags.json).catch(() => undefined);
    },
    beforeStop: async () => {
      if (!signal.aborted) return;
      err.write("\nStopping the VMs, then the daemons. Ctrl-C again leaves all of them running.\n");
      await drainHost(home, false, ({ vmId }) => err.write(`${vmId} is stopped\n`)).catch((error: unknown) => {
        err.write(`The VMs could not be stopped and run on: ${failureOf(error).message}\n`);
      });
    },
  });
}
