import { AppSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { confirmOrRefuse } from "../../confirm.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";

export async function deleteApp(
  context: CliContext,
  flags: ApiFlags & { readonly yes: boolean },
  app: string,
): Promise<void> {
  if (!flags.yes) await confirmOrRefuse(context, `Delete ${app} with its VMs and their disks? Its usage stays.`);
  using gateway = openGateway(context, flags);
  const deleted = await gateway.call((options) => gateway.client.deleteApp({ app }, options));
  if (flags.json) printJson(context, AppSchema, deleted);
  else context.out.write(`${app} is deleted. Its usage stays: unkey usage\n`);
}
