import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { followDeployment } from "../../deploy/follow.ts";
import { StepList } from "../../render/step-list.ts";
import { styled } from "../../render/terminal.ts";

export async function watchDeployment(context: CliContext, flags: ApiFlags, deploymentId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  using steps = new StepList(context.out, () => context.clock.nowMs());
  const done = await followDeployment(context, gateway, deploymentId, { json: flags.json, steps, before: [] });
  if (flags.json) return;
  steps[Symbol.dispose]();
  context.out.write(`\n${done.app} serves at ${styled(context.out, "bold", done.url)}\n`);
}
