import { apiFlags, command, text } from "../../command.ts";
import { parseInstant } from "../../instants.ts";

export const usage = command({
  load: async () => (await import("./show.ts")).showUsage,
  parameters: {
    flags: {
      ...apiFlags,
      app: { kind: "parsed", parse: text, brief: "Only this app's", optional: true, placeholder: "name" },
      vm: { kind: "parsed", parse: text, brief: "Only this VM's", optional: true, placeholder: "vm-id" },
      from: {
        kind: "parsed",
        parse: (input: string) => parseInstant(input, "--from"),
        brief: "From this instant, such as 2026-11-01 or 2026-11-01T12:00Z (the current month without it)",
        optional: true,
        placeholder: "instant",
      },
      to: {
        kind: "parsed",
        parse: (input: string) => parseInstant(input, "--to"),
        brief: "To this instant, exclusive (now without it)",
        optional: true,
        placeholder: "instant",
      },
    },
  },
  docs: { brief: "What was used and what it costs, per app and VM" },
});
