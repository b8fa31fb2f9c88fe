import { buildRouteMap } from "@stricli/core";
import { command, jsonFlag } from "../../command.ts";

const status = command({
  load: async () => (await import("./status.ts")).showStatus,
  parameters: { flags: jsonFlag },
  docs: { brief: "What runs, where it listens and how it is" },
});

export const dev = buildRouteMap({
  routes: { status },
  docs: { brief: "A whole platform on this host" },
});
