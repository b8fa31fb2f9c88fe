import { UsageSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";
import { renderUsage } from "../../render/usage.ts";

type UsageFlags = ApiFlags & {
  readonly app?: string;
  readonly vm?: string;
  readonly from?: bigint;
  readonly to?: bigint;
};

export async function showUsage(context: CliContext, flags: UsageFlags): Promise<void> {
  using gateway = openGateway(context, flags);
  const { app = "", vm: vmId = "", from: fromMs = 0n, to: toMs = 0n } = flags;
  const usage = await gateway.call((options) => gateway.client.getUsage({ app, vmId, fromMs, toMs }, options));
  if (flags.json) return printJson(context, UsageSchema, usage);
  context.out.write(renderUsage(context.out, usage));
}
