import { DeploymentStateSchema, ListDeploymentsResponseSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { type LimitFlag, noteMore } from "../../paging.ts";
import { enumWord, printJson } from "../../render/messages.ts";
import { age, duration } from "../../render/quantities.ts";
import { renderTable } from "../../render/table.ts";

export async function listDeployments(
  context: CliContext,
  flags: ApiFlags & LimitFlag & { readonly app?: string },
): Promise<void> {
  using gateway = openGateway(context, flags);
  const { app = "", limit } = flags;
  const page = await gateway.call((options) => gateway.client.listDeployments({ app, pageSize: limit }, options));
  if (flags.json) return printJson(context, ListDeploymentsResponseSchema, page);
  const columns = [
    { title: "DEPLOYMENT" },
    { title: "APP" },
    { title: "STATE" },
    { title: "TOOK", align: "right" },
    { title: "AGE", align: "right" },
    { title: "IMAGE", shrinks: true },
    { title: "WHY", shrinks: true },
  ] as const;
  const nowMs = context.clock.nowMs();
  const rows = page.deployments.map((deployment) => ({
    cells: [
      deployment.deploymentId,
      deployment.app,
      enumWord(DeploymentStateSchema, deployment.state),
      deployment.endedAtMs === 0n ? "-" : duration(Number(deployment.endedAtMs - deployment.createdAtMs)),
      age(deployment.createdAtMs, nowMs),
      deployment.image,
      deployment.failure?.message ?? "",
    ],
  }));
  context.out.write(rows.length === 0 ? "No deployments yet.\n" : renderTable(context.out, columns, rows));
  noteMore(context, page.nextPageToken, limit);
}
