import { buildRouteMap } from "@stricli/core";
import { apps, deleteApp, startApp, stopApp } from "./commands/apps/routes.ts";
import { builds } from "./commands/builds/routes.ts";
import { deploy } from "./commands/deploy/routes.ts";
import { deployments } from "./commands/deployments/routes.ts";
import { dev } from "./commands/dev/routes.ts";
import { keys } from "./commands/keys/routes.ts";
import { logs } from "./commands/logs/routes.ts";
import { platform } from "./commands/platform/routes.ts";
import { config, login } from "./commands/profile/routes.ts";
import { usage } from "./commands/usage/routes.ts";
import { vms } from "./commands/vms/routes.ts";

/** Every command; what each does is loaded when it is called. */
export const routes = buildRouteMap({
  routes: {
    deploy,
    apps,
    stop: stopApp,
    start: startApp,
    delete: deleteApp,
    logs,
    usage,
    vms,
    deployments,
    builds,
    keys,
    platform,
    login,
    config,
    dev,
  },
  aliases: { build: "builds" },
  docs: {
    brief: "Deploys container images into microVMs and shows what they cost",
    fullDescription: [
      "Deploys container images into microVMs and shows what they cost.",
      "",
      "The API's address, key and authority come from flags, else from UNKEY_API_URL, UNKEY_API_KEY and UNKEY_CA_FILE,",
      "else from $UNKEY_HOME/cli.json (UNKEY_HOME is ~/.unkey unless set), which `unkey dev up` and `unkey login` write.",
      "",
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not authenticated or not allowed, 5 nobody answers,",
      "130 interrupted.",
    ].join("\n"),
  },
});
