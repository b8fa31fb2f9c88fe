import type { JsonFlag } from "../../command.ts";
import type { CliContext } from "../../context.ts";
import { platformDaemons } from "../../dev/daemon-environment.ts";
import { type Home, openHome } from "../../dev/home.ts";
import { observePlatform } from "../../dev/observe.ts";
import { CliFailure, exitCodes } from "../../failure.ts";
import { renderPlatformStatus } from "../../render/platform-status.ts";

/** Exit code 5 unless every daemon is ready, so that scripts can wait for it. */
export async function devStatus(context: CliContext, flags: JsonFlag): Promise<void> {
  const well = await printStatus(context, openHome(context.home), flags.json);
  if (well) return;
  throw new CliFailure("not all of the platform is up", {
    nextStep: "Start or adopt it: unkey dev up. Each daemon's log is in the folder above.",
    exitCode: exitCodes.unavailable,
  });
}

/** Prints what runs now; true when all of it is well. */
export async function printStatus(context: CliContext, home: Home, json: boolean): Promise<boolean> {
  const observed = await observePlatform(home, platformDaemons(context.env));
  if (json) context.out.write(`${JSON.stringify(observed, undefined, 2)}\n`);
  else context.out.write(renderPlatformStatus(context.out, observed));
  return observed.supervised && observed.daemons.every(({ state }) => state === "ready");
}
