import { buildRouteMap } from "@stricli/core";
import { apiFlags, command, word } from "../../command.ts";
import { limitFlag } from "../../paging.ts";

const list = command({
  load: async () => (await import("./list.ts")).listBuilds,
  parameters: { flags: { ...apiFlags, ...limitFlag } },
  docs: { brief: "List builds, newest first" },
});

const show = command({
  load: async () => (await import("./show.ts")).showBuild,
  parameters: { flags: apiFlags, positional: word("build-id", "Id of the build: build_…") },
  docs: { brief: "One build with its states" },
});

export const builds = buildRouteMap({
  routes: { list, show },
  defaultCommand: "list",
  docs: { brief: "Builds: from image to root filesystem" },
});
