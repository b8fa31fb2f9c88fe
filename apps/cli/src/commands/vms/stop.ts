import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { report } from "./act.ts";

export async function stopVm(
  context: CliContext,
  flags: ApiFlags & { readonly force: boolean },
  vmId: string,
): Promise<void> {
  using gateway = openGateway(context, flags);
  const { force } = flags;
  report(context, flags, await gateway.call((options) => gateway.client.stopVm({ vmId, force }, options)));
}
