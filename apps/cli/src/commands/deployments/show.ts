import { type Deployment, DeploymentSchema, DeploymentStateSchema } from "@unkey/api/gateway";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import { nextStepHere } from "../../connection/cli-words.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { toStep } from "../../deploy/follow.ts";
import { exitText } from "../../render/exit-status.ts";
import { renderFields } from "../../render/fields.ts";
import { imageText } from "../../render/image.ts";
import { enumWord, printJson } from "../../render/messages.ts";
import { instant } from "../../render/quantities.ts";
import { StepList } from "../../render/step-list.ts";

export async function showDeployment(context: CliContext, flags: ApiFlags, deploymentId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const deployment = await gateway.call((options) => gateway.client.getDeployment({ deploymentId }, options));
  if (flags.json) return printJson(context, DeploymentSchema, deployment);
  context.out.write(renderFields(context.out, fieldsOf(deployment)));
  context.out.write("\n");
  using steps = new StepList({ ...context.out, live: false }, () => context.clock.nowMs());
  steps.update(deployment.steps.map(toStep));
}

function fieldsOf(deployment: Deployment): Array<[string, string]> {
  const { resources, failure } = deployment;
  return [
    ["deployment", deployment.deploymentId],
    ["app", deployment.app],
    ["state", enumWord(DeploymentStateSchema, deployment.state)],
    ["url", deployment.url],
    ["image", imageText(deployment)],
    ["digest", deployment.imageDigest],
    ["build", deployment.buildId],
    ["vms", deployment.vmIds.join(" ")],
    ["port", deployment.port === 0 ? "" : String(deployment.port)],
    [
      "resources",
      resources === undefined
        ? ""
        : `${resources.vcpuCount} vCPU, ${formatBytes(resources.memoryBytes)}, disk ${formatBytes(resources.diskBytes)}`,
    ],
    ["created", instant(deployment.createdAtMs)],
    ["ended", instant(deployment.endedAtMs)],
    ["failure", failure === undefined ? "" : `${failure.step}: ${failure.message} (${failure.reason})`],
    ["exit", exitText(failure?.exit)],
    ...(failure?.lastLines ?? []).map((line): [string, string] => ["", `| ${line}`]),
    ["next", failure === undefined ? "" : nextStepHere(failure.reason, failure.nextStep)],
  ];
}
