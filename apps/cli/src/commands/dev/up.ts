import type { JsonFlag } from "../../command.ts";
import type { CliContext } from "../../context.ts";
import { openHome } from "../../dev/home.ts";
import { requireHost } from "../../dev/preflight.ts";
import { up } from "../../dev/up.ts";
import { StepList } from "../../render/step-list.ts";
import { foreground } from "./foreground.ts";
import { printStatus } from "./status.ts";

export type UpFlags = JsonFlag & { readonly ports: "default" | "auto"; readonly foreground: boolean };

export async function devUp(context: CliContext, flags: UpFlags): Promise<void> {
  requireHost({ env: context.env, uid: process.getuid?.() ?? -1 });
  if (flags.foreground) return foreground(context, flags);
  const { env, clock, signal } = context;
  const home = openHome(context.home);
  const main = new URL("../../main.ts", import.meta.url).pathname;
  {
    using steps = new StepList(context.err, () => clock.nowMs(), { nameWidth: "billing-aggregator".length });
    await up({ home, clock, steps, signal, env, supervisorArgv: [main, "dev", "supervise", "--ports", flags.ports] });
  }
  await printStatus(context, home, flags.json);
}
