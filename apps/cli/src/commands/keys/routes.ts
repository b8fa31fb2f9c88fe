import { buildRouteMap } from "@stricli/core";
import { apiFlags, command, text, word } from "../../command.ts";
import { wholeNumber } from "../../numbers.ts";

const createKey = command({
  load: async () => (await import("./create.ts")).createKey,
  parameters: {
    flags: {
      ...apiFlags,
      scope: {
        kind: "parsed",
        parse: text,
        brief: "What it may do, such as deployments:write, apps:* or *; may be repeated",
        variadic: true,
        placeholder: "scope",
      },
      days: {
        kind: "parsed",
        parse: (input: string) => wholeNumber(input, "--days", { min: 1, max: 3650 }),
        brief: "It ends by itself after so many days (never without it)",
        optional: true,
        placeholder: "count",
      },
    },
    positional: word("name", "What the key is for"),
  },
  docs: { brief: "Make an API key and print it, once" },
});

const list = command({
  load: async () => (await import("./list.ts")).listKeys,
  parameters: { flags: apiFlags },
  docs: { brief: "List API keys, without their secrets" },
});

const revoke = command({
  load: async () => (await import("./revoke.ts")).revokeKey,
  parameters: { flags: apiFlags, positional: word("key-id", "Id of the key: key_…") },
  docs: { brief: "End an API key at once" },
});

export const keys = buildRouteMap({
  routes: { create: createKey, list, revoke },
  defaultCommand: "list",
  docs: { brief: "API keys" },
});
