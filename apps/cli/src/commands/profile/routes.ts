import { apiFlags, command, jsonFlag } from "../../command.ts";

const { apiUrl, caFile } = apiFlags;

export const login = command({
  load: async () => (await import("./login.ts")).login,
  parameters: { flags: { apiUrl, caFile, ...jsonFlag } },
  docs: {
    brief: "Keep an address and key in the profile; the key is read from stdin",
    fullDescription:
      "Asks for the API key, or reads it from a pipe, checks it against the platform and writes $UNKEY_HOME/cli.json.",
  },
});

export const config = command({
  load: async () => (await import("./config.ts")).showConfig,
  parameters: { flags: apiFlags },
  docs: { brief: "Which address, key and authority are used, and where each comes from" },
});
