import { BuildSchema, BuildState, BuildStateSchema } from "@unkey/api/builder";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { enumWord, printJson } from "../../render/messages.ts";

export async function cancelBuild(context: CliContext, flags: ApiFlags, buildId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const build = await gateway.call((options) => gateway.client.cancelBuild({ buildId }, options));
  if (flags.json) return printJson(context, BuildSchema, build);
  const { state } = build;
  context.out.write(
    state === BuildState.CANCELLED
      ? `${buildId} is cancelled; nothing of it is left.\n`
      : `${buildId} had ended already: ${enumWord(BuildStateSchema, state)}.\n`,
  );
}
