import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { ImageSourceSchema } from "@unkey/api/builder";
import {
  CreateDeploymentRequestSchema,
  type Deployment,
  DeploymentState,
  type GatewayService,
} from "@unkey/api/gateway";

type Api = Client<typeof GatewayService>;

export const helloImage = { source: { case: "reference", value: "hello:1" } } as const;

/** Follows a deployment to its end. */
export async function untilTerminal(client: Api, deploymentId: string): Promise<Deployment> {
  let last: Deployment | undefined;
  for await (const deployment of client.watchDeployment({ deploymentId })) last = deployment;
  if (!last || last.state === DeploymentState.RUNNING) throw new Error(`${deploymentId} is not terminal`);
  return last;
}

export async function deployAndWait(
  client: Api,
  request: MessageInitShape<typeof CreateDeploymentRequestSchema>,
): Promise<Deployment> {
  const message = create(CreateDeploymentRequestSchema, request);
  message.image ??= create(ImageSourceSchema, helloImage);
  const { deploymentId } = await client.createDeployment(message);
  return untilTerminal(client, deploymentId);
}
