import { buildRouteMap } from "@stricli/core";
import { command, jsonFlag } from "../../command.ts";

const portsFlag = {
  ports: {
    kind: "enum",
    values: ["default", "auto"],
    brief: "The documented ports, or free ones",
    default: "default",
  },
} as const;

const up = command({
  load: async () => (await import("./up.ts")).devUp,
  parameters: {
    flags: {
      ...portsFlag,
      ...jsonFlag,
      foreground: { kind: "boolean", brief: "Stay; Ctrl-C stops the VMs and the daemons", default: false },
    },
  },
  docs: { brief: "Start the platform, or adopt what runs of it; nothing happens when it is up" },
});

const down = command({
  load: async () => (await import("./down.ts")).devDown,
  parameters: {
    flags: {
      keepVms: { kind: "boolean", brief: "Leave the VMs running; the next `dev up` adopts them", default: false },
      deleteVms: { kind: "boolean", brief: "Delete the VMs and their disks after stopping them", default: false },
      ...jsonFlag,
    },
  },
  docs: { brief: "Stop the VMs in order, then the daemons; deletes nothing unless told to" },
});

const status = command({
  load: async () => (await import("./status.ts")).devStatus,
  parameters: { flags: jsonFlag },
  docs: { brief: "What runs, where it listens and how it is; exit code 5 unless all of it is well" },
});

const doctor = command({
  load: async () => (await import("./doctor.ts")).devDoctor,
  parameters: { flags: jsonFlag },
  docs: { brief: "What this host lacks to run the platform" },
});

/** What `dev up` starts in the background. */
const supervise = command({
  load: async () => (await import("./supervise.ts")).devSupervise,
  parameters: { flags: portsFlag },
  docs: { brief: "Run the daemons until SIGTERM" },
});

export const dev = buildRouteMap({
  routes: { up, down, status, doctor, supervise },
  docs: { brief: "A whole platform on this host, in UNKEY_HOME", hideRoute: { supervise: true } },
});
