import type { ApiFlags } from "../../command.ts";
import { confirmOrRefuse } from "../../confirm.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { report } from "./act.ts";

export async function deleteVm(
  context: CliContext,
  flags: ApiFlags & { readonly yes: boolean },
  vmId: string,
): Promise<void> {
  if (!flags.yes) await confirmOrRefuse(context, `Delete ${vmId} and its disk? Its usage stays.`);
  using gateway = openGateway(context, flags);
  report(context, flags, await gateway.call((options) => gateway.client.deleteVm({ vmId }, options)));
}
