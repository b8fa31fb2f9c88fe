import { VmSchema, VmStateSchema } from "@unkey/api/metal";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { exitText } from "../../render/exit-status.ts";
import { renderFields } from "../../render/fields.ts";
import { enumWord, printJson } from "../../render/messages.ts";
import { instant } from "../../render/quantities.ts";

export async function showVm(context: CliContext, flags: ApiFlags, vmId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const vm = await gateway.call((options) => gateway.client.getVm({ vmId }, options));
  if (flags.json) return printJson(context, VmSchema, vm);
  const { resources, failure } = vm;
  context.out.write(
    renderFields(context.out, [
      ["vm", vm.vmId],
      ["state", enumWord(VmStateSchema, vm.state)],
      ["app", vm.appId],
      ["deployment", vm.deploymentId],
      ["host", vm.hostId],
      ["address", vm.ipAddress],
      ["vcpus", resources === undefined ? "" : String(resources.vcpuCount)],
      ["memory", resources === undefined ? "" : formatBytes(resources.memoryBytes)],
      ["disk", resources === undefined ? "" : formatBytes(resources.diskBytes)],
      ["boots", String(vm.incarnation)],
      ["created", instant(vm.createdAtMs)],
      ["started", instant(vm.startedAtMs)],
      ["ended", instant(vm.endedAtMs)],
      ["exit", exitText(vm.exit)],
      ["failure", failure === undefined ? "" : `${failure.message} (${failure.reason})`],
      ...(failure?.lastLines ?? []).map((line): [string, string] => ["", `| ${line}`]),
    ]),
  );
}
