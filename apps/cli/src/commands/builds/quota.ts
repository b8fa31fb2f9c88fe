import { BuildQuotaSchema } from "@unkey/api/builder";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";
import { duration } from "../../render/quantities.ts";
import { renderTable } from "../../render/table.ts";

export async function showBuildQuota(context: CliContext, flags: ApiFlags): Promise<void> {
  using gateway = openGateway(context, flags);
  const quota = await gateway.call((options) => gateway.client.getBuildQuota({}, options));
  if (flags.json) return printJson(context, BuildQuotaSchema, quota);
  const columns = [{ title: "QUOTA" }, { title: "USED", align: "right" }, { title: "LIMIT", align: "right" }] as const;
  const rows = [
    ["builds at once", String(quota.concurrentUsed), String(quota.concurrentLimit)],
    ["builds today", String(quota.dailyUsed), String(quota.dailyLimit)],
    ["layers fetched today", formatBytes(quota.dailyBytesUsed), formatBytes(quota.dailyBytesLimit)],
    ["minutes of building today", String(quota.dailyMinutesUsed), String(quota.dailyMinutesLimit)],
  ];
  context.out.write(
    renderTable(
      context.out,
      columns,
      rows.map((cells) => ({ cells })),
    ),
  );
  const leftMs = Math.max(0, Number(quota.resetsAtMs) - context.clock.nowMs());
  context.out.write(`Days are UTC: they begin again in ${duration(leftMs)}.\n`);
}
