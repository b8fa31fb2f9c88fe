import type { CliContext } from "../../context.ts";
import { openHome } from "../../dev/home.ts";
import { unkeyPlatform } from "../../dev/platform.ts";
import { runSupervisor, terminationAsked } from "../../dev/run-supervisor.ts";

export async function devSupervise(context: CliContext, flags: { readonly ports: "default" | "auto" }): Promise<void> {
  const { env, clock, out } = context;
  const home = openHome(context.home);
  const log = (line: string) => out.write(`${new Date(clock.nowMs()).toISOString()} ${line}\n`);
  const stopAsked = terminationAsked();
  log(`supervisor ${process.pid} starts`);
  await runSupervisor({ home, platform: unkeyPlatform(home, env), ports: flags.ports, env, clock, log, stopAsked });
  log("all stopped");
}
