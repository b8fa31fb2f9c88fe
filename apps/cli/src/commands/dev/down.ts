import { VmStateSchema } from "@unkey/api/metal";
import type { JsonFlag } from "../../command.ts";
import type { CliContext } from "../../context.ts";
import { platformDaemons } from "../../dev/daemon-environment.ts";
import { down } from "../../dev/down.ts";
import { drainHost } from "../../dev/drain.ts";
import { openHome } from "../../dev/home.ts";
import { usageFailure } from "../../failure.ts";
import { enumWord } from "../../render/messages.ts";
import { counted } from "../../render/quantities.ts";

type DownFlags = JsonFlag & { readonly keepVms: boolean; readonly deleteVms: boolean };

export async function devDown(context: CliContext, flags: DownFlags): Promise<void> {
  if (flags.keepVms && flags.deleteVms) {
    throw usageFailure("--keep-vms and --delete-vms contradict each other", "Give one of them.");
  }
  const { env, clock, out, err } = context;
  const home = openHome(context.home);
  const vms: string[] = [];
  const drain = () =>
    drainHost(home, flags.deleteVms, ({ vmId, state }) => {
      vms.push(vmId);
      if (!flags.json) err.write(`${vmId} is ${enumWord(VmStateSchema, state)}\n`);
    });
  const { stopped } = await down({ home, daemons: platformDaemons(env), clock, ...(flags.keepVms ? {} : { drain }) });
  if (flags.json) out.write(`${JSON.stringify({ vms, stopped })}\n`);
  else if (stopped.length === 0) out.write(`Nothing runs in ${home.root}.\n`);
  else {
    const vmText = flags.keepVms
      ? "the VMs run on"
      : `${counted(vms.length, "VM")} ${flags.deleteVms ? "deleted" : "stopped"}`;
    out.write(`Stopped ${stopped.join(", ")}; ${vmText}.\n`);
    if (vms.length > 0 && !flags.deleteVms)
      out.write("`unkey dev up` starts the daemons again, `unkey start <app>` an app's VMs.\n");
  }
}
