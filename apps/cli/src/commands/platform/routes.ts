import { apiFlags, command } from "../../command.ts";

export const platform = command({
  load: async () => (await import("./show.ts")).showPlatform,
  parameters: { flags: apiFlags },
  docs: { brief: "Version, hosts, and what isolates VMs on them" },
});
