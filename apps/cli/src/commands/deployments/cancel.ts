import { DeploymentSchema, DeploymentStateSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { enumWord, printJson } from "../../render/messages.ts";

export async function cancelDeployment(context: CliContext, flags: ApiFlags, deploymentId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const deployment = await gateway.call((options) => gateway.client.cancelDeployment({ deploymentId }, options));
  if (flags.json) {
    printJson(context, DeploymentSchema, deployment);
    return;
  }
  const ended = deployment.endedAtMs > 0n;
  context.out.write(
    ended
      ? `${deploymentId} is ${enumWord(DeploymentStateSchema, deployment.state)}.\n`
      : `${deploymentId} is being cancelled; what it made is undone. See the end: unkey deployments watch ${deploymentId}\n`,
  );
}
