import { buildRouteMap } from "@stricli/core";
import { apiFlags, command, text, word } from "../../command.ts";
import { wholeNumber } from "../../numbers.ts";
import { limitFlag } from "../../paging.ts";

const buildId = word("build-id", "Id of the build: build_…");

const list = command({
  load: async () => (await import("./list.ts")).listBuilds,
  parameters: { flags: { ...apiFlags, ...limitFlag } },
  docs: { brief: "List builds, newest first" },
});

const show = command({
  load: async () => (await import("./show.ts")).showBuild,
  parameters: { flags: apiFlags, positional: buildId },
  docs: { brief: "One build with its states" },
});

const logs = command({
  load: async () => (await import("./logs.ts")).streamBuildLogs,
  parameters: {
    flags: {
      ...apiFlags,
      follow: { kind: "boolean", brief: "Stay until the build has ended", default: false },
      after: {
        kind: "parsed",
        parse: (input: string) => wholeNumber(input, "--after", { min: 0, max: Number.MAX_SAFE_INTEGER }),
        brief: "Leave out the lines up to this sequence, as --json shows it",
        optional: true,
        placeholder: "sequence",
      },
    },
    aliases: { f: "follow" },
    positional: buildId,
  },
  docs: { brief: "What a build says" },
});

const cancel = command({
  load: async () => (await import("./cancel.ts")).cancelBuild,
  parameters: { flags: apiFlags, positional: buildId },
  docs: { brief: "End a build; nothing of it stays" },
});

const quota = command({
  load: async () => (await import("./quota.ts")).showBuildQuota,
  parameters: { flags: apiFlags },
  docs: { brief: "What may be built today, and what has been" },
});

const documentParameters = {
  flags: {
    ...apiFlags,
    output: {
      kind: "parsed",
      parse: text,
      brief: "File to write it to, in place of the terminal",
      optional: true,
      placeholder: "file",
    },
  },
  aliases: { o: "output" },
  positional: buildId,
} as const;

const sbom = command({
  load: async () => (await import("./document.ts")).printSbom,
  parameters: documentParameters,
  docs: { brief: "The packages in a build's root filesystem, as SPDX 2.3 (JSON)" },
});

const provenance = command({
  load: async () => (await import("./document.ts")).printProvenance,
  parameters: documentParameters,
  docs: { brief: "The signed statement of how it was made, as a DSSE envelope (JSON)" },
});

const verify = command({
  load: async () => (await import("./verify.ts")).verifyBuild,
  parameters: { flags: apiFlags, positional: buildId },
  docs: { brief: "Check the chain from image to root filesystem; fails when a link is broken" },
});

export const builds = buildRouteMap({
  routes: { list, show, logs, cancel, quota, verify, sbom, provenance },
  aliases: { get: "show" },
  defaultCommand: "list",
  docs: { brief: "Builds: from image to root filesystem" },
});
