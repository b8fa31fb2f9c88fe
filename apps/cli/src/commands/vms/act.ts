import type { CallOptions } from "@connectrpc/connect";
import { type Vm, VmSchema, VmStateSchema } from "@unkey/api/metal";
import type { ApiFlags } from "../../command.ts";
import type { Gateway, Patience } from "../../connection/gateway.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { enumWord, printJson } from "../../render/messages.ts";

/** The verbs that take nothing but the VM. */
export type VmVerb = "pause" | "resume" | "start" | "reboot";

type Call = (gateway: Gateway, vmId: string, options: CallOptions) => Promise<Vm>;

const calls: Readonly<Record<VmVerb, { readonly call: Call; readonly patience?: Patience }>> = {
  pause: { call: ({ client }, vmId, options) => client.pauseVm({ vmId }, options) },
  resume: { call: ({ client }, vmId, options) => client.resumeVm({ vmId }, options) },
  start: { call: ({ client }, vmId, options) => client.startVm({ vmId }, options) },
  // Sent again, it would boot twice.
  reboot: { call: ({ client }, vmId, options) => client.rebootVm({ vmId }, options), patience: "once" },
};

export function act(verb: VmVerb) {
  const { call, patience } = calls[verb];
  return async function (context: CliContext, flags: ApiFlags, vmId: string): Promise<void> {
    using gateway = openGateway(context, flags);
    report(context, flags, await gateway.call((options) => call(gateway, vmId, options), patience));
  };
}

export function report(context: CliContext, flags: ApiFlags, vm: Vm): void {
  if (flags.json) printJson(context, VmSchema, vm);
  else context.out.write(`${vm.vmId} is ${enumWord(VmStateSchema, vm.state)}.\n`);
}
