import { LogChunkSchema } from "@unkey/api/gateway";
import { LogSource } from "@unkey/api/metal";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJsonLine } from "../../render/messages.ts";

type LogsFlags = ApiFlags & {
  readonly follow: boolean;
  readonly console: boolean;
  readonly tail?: number;
};

/** Bytes go out as the program wrote them; what was dropped before them is said on stderr. */
export async function streamLogs(context: CliContext, flags: LogsFlags, name: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const request = {
    ...(name.startsWith("vm_") ? { vmId: name } : { app: name }),
    source: flags.console ? LogSource.CONSOLE : LogSource.APP,
    follow: flags.follow,
    tailLines: flags.tail ?? 0,
  };
  for await (const chunk of gateway.stream((signal) => gateway.client.streamLogs(request, { signal }))) {
    if (flags.json) {
      printJsonLine(context, LogChunkSchema, chunk);
      continue;
    }
    if (chunk.droppedBytes > 0n)
      context.err.write(`(${formatBytes(chunk.droppedBytes)} of older output are not kept)\n`);
    context.out.write(chunk.data);
  }
}
