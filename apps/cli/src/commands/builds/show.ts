import { type Build, BuildSchema, BuildStateSchema, type BuildStep, RootfsFormatSchema } from "@unkey/api/builder";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import { nextStepHere } from "../../connection/cli-words.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { renderFields } from "../../render/fields.ts";
import { enumWord, printJson } from "../../render/messages.ts";
import { duration, instant } from "../../render/quantities.ts";

export async function showBuild(context: CliContext, flags: ApiFlags, buildId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const build = await gateway.call((options) => gateway.client.getBuild({ buildId }, options));
  if (flags.json) printJson(context, BuildSchema, build);
  else context.out.write(renderFields(context.out, fieldsOf(build)));
}

function fieldsOf(build: Build): Array<[string, string]> {
  const { failure } = build;
  return [
    ["build", build.buildId],
    ["state", enumWord(BuildStateSchema, build.state)],
    ["image", build.image],
    ["digest", build.imageDigest],
    ["policy", build.policyDigest],
    ["platform", build.platform],
    ["cached", build.cacheHit ? "yes: an earlier build of the same digest was used" : "no"],
    [
      "rootfs",
      build.rootfsBytes === 0n
        ? ""
        : `${build.rootfsAssetId} (${enumWord(RootfsFormatSchema, build.format)}, ${formatBytes(build.rootfsBytes)})`,
    ],
    ["provenance", build.provenanceAssetId],
    ["packages", build.sbomAssetId],
    ["command", build.process?.argv.join(" ") ?? ""],
    ["created", instant(build.createdAtMs)],
    ...build.steps.map((step): [string, string] => [enumWord(BuildStateSchema, step.state), stepText(step)]),
    ["failure", failure === undefined ? "" : `${failure.message} (${failure.reason})`],
    ["next", failure === undefined ? "" : nextStepHere(failure.reason, failure.nextStep)],
  ];
}

function stepText({ startedAtMs, endedAtMs, bytesDone, bytesTotal }: BuildStep): string {
  const time = endedAtMs === 0n ? "at work" : duration(Number(endedAtMs - startedAtMs));
  if (bytesDone === 0n) return time;
  return `${time}, ${formatBytes(bytesDone)}${bytesTotal === 0n ? "" : ` of ${formatBytes(bytesTotal)}`}`;
}
