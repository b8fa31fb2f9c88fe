import { ListVmsResponseSchema } from "@unkey/api/gateway";
import { type Vm, VmSchema, VmStateSchema } from "@unkey/api/metal";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import type { Gateway } from "../../connection/gateway.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { type LimitFlag, noteMore } from "../../paging.ts";
import { exitText } from "../../render/exit-status.ts";
import { enumWord, printJson, printJsonLine } from "../../render/messages.ts";
import { age } from "../../render/quantities.ts";
import { renderTable } from "../../render/table.ts";

type ListVmsFlags = ApiFlags &
  LimitFlag & {
    readonly app?: string;
    readonly all: boolean;
    readonly watch: boolean;
  };

export async function listVms(context: CliContext, flags: ListVmsFlags): Promise<void> {
  using gateway = openGateway(context, flags);
  const { app = "", limit, all } = flags;
  if (flags.watch) return await watchVms(context, gateway, app, flags.json);
  const page = await gateway.call((options) =>
    gateway.client.listVms({ app, pageSize: limit, includeDeleted: all }, options),
  );
  if (flags.json) return printJson(context, ListVmsResponseSchema, page);
  if (page.vms.length === 0) context.out.write("No VMs.\n");
  else printVms(context, page.vms, page.appNames);
  noteMore(context, page.nextPageToken, limit);
}

async function watchVms(context: CliContext, gateway: Gateway, app: string, json: boolean): Promise<void> {
  for await (const vm of gateway.follow((signal) => gateway.client.watchVms({ app }, { signal }))) {
    if (json) printJsonLine(context, VmSchema, vm);
    else
      context.out.write(
        `${vm.vmId}  ${enumWord(VmStateSchema, vm.state)}  ${exitText(vm.exit)}`.trimEnd().concat("\n"),
      );
  }
}

/** `appNames` are the names of apps by their ids. */
export function printVms(context: CliContext, vms: readonly Vm[], appNames: Readonly<Record<string, string>>): void {
  const columns = [
    { title: "VM" },
    { title: "APP", shrinks: true },
    { title: "STATE" },
    { title: "BOOTS", align: "right" },
    { title: "VCPUS", align: "right" },
    { title: "MEMORY", align: "right" },
    { title: "ADDRESS" },
    { title: "AGE", align: "right" },
    { title: "ENDED", shrinks: true },
  ] as const;
  const rows = vms.map((vm) => ({
    cells: [
      vm.vmId,
      appNames[vm.appId] ?? vm.appId,
      enumWord(VmStateSchema, vm.state),
      String(vm.incarnation),
      String(vm.resources?.vcpuCount ?? "-"),
      vm.resources === undefined ? "-" : formatBytes(vm.resources.memoryBytes),
      vm.ipAddress || "-",
      age(vm.createdAtMs, context.clock.nowMs()),
      vm.failure?.message ?? exitText(vm.exit),
    ],
  }));
  context.out.write(renderTable(context.out, columns, rows));
}
