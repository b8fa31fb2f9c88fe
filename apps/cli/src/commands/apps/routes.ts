import { apiFlags, command, text, word } from "../../command.ts";
import { limitFlag } from "../../paging.ts";

const appName = word("app", "Name of the app");

export const apps = command({
  load: async () => (await import("./list.ts")).listApps,
  parameters: {
    flags: { ...apiFlags, ...limitFlag },
    positional: {
      kind: "tuple",
      parameters: [{ parse: text, placeholder: "app", brief: "Only this app", optional: true }],
    },
  },
  docs: { brief: "What serves, and where" },
});

export const stopApp = command({
  load: async () => (await import("./stop.ts")).stopApp,
  parameters: { flags: apiFlags, positional: appName },
  docs: { brief: "Stop an app's VMs in order; it keeps its name" },
});

export const startApp = command({
  load: async () => (await import("./start.ts")).startApp,
  parameters: { flags: apiFlags, positional: appName },
  docs: { brief: "Boot a stopped app's VMs again" },
});

export const deleteApp = command({
  load: async () => (await import("./delete.ts")).deleteApp,
  parameters: {
    flags: { ...apiFlags, yes: { kind: "boolean", brief: "Do not ask", default: false } },
    aliases: { y: "yes" },
    positional: appName,
  },
  docs: { brief: "Delete an app with its VMs; its usage stays" },
});
