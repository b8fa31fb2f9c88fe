import {
  type Deployment,
  DeploymentSchema,
  DeploymentState,
  type DeploymentStep,
  StepStateSchema,
} from "@unkey/api/gateway";
import { nextStepHere } from "../connection/cli-words.ts";
import type { Gateway } from "../connection/gateway.ts";
import type { CliContext } from "../context.ts";
import { CliFailure, exitCodes, Interrupted } from "../failure.ts";
import { exitText } from "../render/exit-status.ts";
import { enumWord, printJsonLine } from "../render/messages.ts";
import type { Step, StepList, StepState } from "../render/step-list.ts";
import { plain } from "../render/terminal.ts";

/** Shows a deployment until it is terminal: as NDJSON, or as steps. Throws when it did not succeed. */
export async function followDeployment(
  context: CliContext,
  gateway: Gateway,
  deploymentId: string,
  show: { readonly json: boolean; readonly steps: StepList; readonly before: readonly Step[] },
): Promise<Deployment> {
  let last: Deployment | undefined;
  const watch = gateway.follow((signal) => gateway.client.watchDeployment({ deploymentId }, { signal }));
  try {
    for await (const deployment of watch) {
      last = deployment;
      if (show.json) printJsonLine(context, DeploymentSchema, deployment);
      else show.steps.update([...show.before, ...deployment.steps.map(toStep)]);
      if (isTerminal(deployment)) break;
    }
  } catch (error) {
    if (error instanceof Interrupted) throw new Interrupted(detachedHint(deploymentId));
    if (!(error instanceof CliFailure)) throw error;
    const isNone = error.exitCode === exitCodes.notFound || error.exitCode === exitCodes.usage;
    if (last === undefined && isNone) throw error;
    const { exitCode, nextStep, reason } = error;
    throw new CliFailure(`${error.message}; the deployment goes on without us`, {
      exitCode,
      nextStep: `${nextStep} Then: unkey deployments watch ${deploymentId}`,
      ...(reason === undefined ? {} : { reason }),
      cause: error,
    });
  }
  if (last === undefined || !isTerminal(last)) {
    throw new CliFailure("the platform stopped telling about the deployment before it ended", {
      nextStep: `Follow it again: unkey deployments watch ${deploymentId}`,
    });
  }
  if (last.state !== DeploymentState.SUCCEEDED) throw deploymentFailure(last);
  return last;
}

export function detachedHint(deploymentId: string): string {
  return `The deployment goes on. Follow it: unkey deployments watch ${deploymentId}   Give it up: unkey deployments cancel ${deploymentId}`;
}

export function isTerminal({ state }: Deployment): boolean {
  return state !== DeploymentState.RUNNING && state !== DeploymentState.UNSPECIFIED;
}

export function toStep(step: DeploymentStep): Step {
  return {
    name: plain(step.kind),
    state: enumWord(StepStateSchema, step.state) as StepState,
    startedAtMs: Number(step.startedAtMs),
    endedAtMs: Number(step.endedAtMs),
    detail: step.attempts > 1 ? `${step.detail} (attempt ${step.attempts})` : step.detail,
  };
}

/** Why it did not succeed: the step, how the program ended, its last lines, what to do. */
export function deploymentFailure(deployment: Deployment): CliFailure {
  const { failure, deploymentId, app } = deployment;
  if (deployment.state === DeploymentState.CANCELLED) {
    return new CliFailure(`the deployment ${deploymentId} of ${app} was cancelled and undone`, {
      nextStep: "Run `unkey deploy` again when you want it after all.",
    });
  }
  const exit = exitText(failure?.exit);
  const what = `${failure?.step ?? "deployment"} failed: ${plain(failure?.message ?? "no reason was given")}`;
  // The gateway's sentence may name it already.
  return new CliFailure(what.includes(exit) ? what : `${what.replace(/[.]$/, "")} (${exit})`, {
    nextStep:
      nextStepHere(failure?.reason ?? "", plain(failure?.nextStep ?? "")) ||
      `Look at \`unkey deployments show ${deploymentId}\`.`,
    ...(failure === undefined ? {} : { reason: failure.reason }),
    evidence: (failure?.lastLines ?? []).map(plain),
  });
}
