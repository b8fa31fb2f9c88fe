import { buildRouteMap } from "@stricli/core";
import { apiFlags, command, text, word } from "../../command.ts";
import { limitFlag } from "../../paging.ts";
import type { VmVerb } from "./act.ts";

const vmId = word("vm-id", "Id of the VM: vm_…");

const list = command({
  load: async () => (await import("./list.ts")).listVms,
  parameters: {
    flags: {
      ...apiFlags,
      ...limitFlag,
      app: { kind: "parsed", parse: text, brief: "Only this app's", optional: true, placeholder: "name" },
      all: { kind: "boolean", brief: "Deleted ones too", default: false },
      watch: { kind: "boolean", brief: "Stay and print each change", default: false },
    },
    aliases: { a: "all", w: "watch" },
  },
  docs: { brief: "List VMs, newest first" },
});

const show = command({
  load: async () => (await import("./show.ts")).showVm,
  parameters: { flags: apiFlags, positional: vmId },
  docs: { brief: "One VM, with how it ended or failed" },
});

function verb(name: VmVerb, brief: string) {
  return command({
    load: async () => (await import("./act.ts")).act(name),
    parameters: { flags: apiFlags, positional: vmId },
    docs: { brief },
  });
}

const stop = command({
  load: async () => (await import("./stop.ts")).stopVm,
  parameters: {
    flags: {
      ...apiFlags,
      force: { kind: "boolean", brief: "End it at once, without asking the guest", default: false },
    },
    positional: vmId,
  },
  docs: { brief: "Stop a VM in order" },
});

const remove = command({
  load: async () => (await import("./delete.ts")).deleteVm,
  parameters: {
    flags: { ...apiFlags, yes: { kind: "boolean", brief: "Do not ask", default: false } },
    aliases: { y: "yes" },
    positional: vmId,
  },
  docs: { brief: "Delete a VM and its disk; its usage stays" },
});

export const vms = buildRouteMap({
  routes: {
    list,
    show,
    pause: verb("pause", "Freeze a VM"),
    resume: verb("resume", "Let a paused VM run on"),
    stop,
    start: verb("start", "Boot a stopped VM"),
    reboot: verb("reboot", "Stop a VM in order and boot it again"),
    delete: remove,
  },
  defaultCommand: "list",
  docs: { brief: "VMs, and what can be done to one" },
});
