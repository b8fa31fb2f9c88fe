import { apiFlags, command, word } from "../../command.ts";
import { wholeNumber } from "../../numbers.ts";

export const logs = command({
  load: async () => (await import("./stream.ts")).streamLogs,
  parameters: {
    flags: {
      ...apiFlags,
      follow: { kind: "boolean", brief: "Stay until the VM ends", default: false },
      console: { kind: "boolean", brief: "What the kernel and init wrote, not the program", default: false },
      tail: {
        kind: "parsed",
        parse: (input: string) => wholeNumber(input, "--tail", { min: 1, max: 100_000 }),
        brief: "Only the newest lines",
        optional: true,
        placeholder: "lines",
      },
    },
    aliases: { f: "follow", n: "tail" },
    positional: word("app-or-vm", "Name of the app (its newest VM), or vm_…"),
  },
  docs: { brief: "Output of an app or VM" },
});
