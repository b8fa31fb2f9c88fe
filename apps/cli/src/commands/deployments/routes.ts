import { buildRouteMap } from "@stricli/core";
import { apiFlags, command, text, word } from "../../command.ts";
import { limitFlag } from "../../paging.ts";

const deploymentId = word("deployment-id", "Id of the deployment: dep_…");

const list = command({
  load: async () => (await import("./list.ts")).listDeployments,
  parameters: {
    flags: {
      ...apiFlags,
      ...limitFlag,
      app: { kind: "parsed", parse: text, brief: "Only this app's", optional: true, placeholder: "name" },
    },
  },
  docs: { brief: "List deployments, newest first" },
});

const show = command({
  load: async () => (await import("./show.ts")).showDeployment,
  parameters: { flags: apiFlags, positional: deploymentId },
  docs: { brief: "One deployment with its steps" },
});

const watch = command({
  load: async () => (await import("./watch.ts")).watchDeployment,
  parameters: { flags: apiFlags, positional: deploymentId },
  docs: { brief: "Follow a deployment to its end" },
});

const cancel = command({
  load: async () => (await import("./cancel.ts")).cancelDeployment,
  parameters: { flags: apiFlags, positional: deploymentId },
  docs: { brief: "Give a running deployment up and undo it" },
});

export const deployments = buildRouteMap({
  routes: { list, show, watch, cancel },
  defaultCommand: "list",
  docs: { brief: "Deployments, and what became of them" },
});
