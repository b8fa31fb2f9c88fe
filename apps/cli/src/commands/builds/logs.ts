import { type BuildLogLine, BuildLogLineSchema } from "@unkey/api/builder";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJsonLine } from "../../render/messages.ts";
import { plain, styled } from "../../render/terminal.ts";

type BuildLogsFlags = ApiFlags & {
  readonly follow: boolean;
  readonly after?: number;
};

/** A connection that is lost goes on behind the last line that arrived. */
export async function streamBuildLogs(context: CliContext, flags: BuildLogsFlags, buildId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const { follow, after = 0 } = flags;
  let afterSequence = BigInt(after);
  const open = (signal: AbortSignal) => gateway.client.streamBuildLogs({ buildId, follow, afterSequence }, { signal });
  for await (const line of gateway.follow(open)) {
    afterSequence = line.sequence;
    if (flags.json) printJsonLine(context, BuildLogLineSchema, line);
    else context.out.write(lineText(context, line));
  }
}

function lineText({ out }: CliContext, { atMs, text }: BuildLogLine): string {
  const time = new Date(Number(atMs)).toISOString().slice(11, 23);
  return `${styled(out, "dim", time)}  ${plain(text)}\n`;
}
