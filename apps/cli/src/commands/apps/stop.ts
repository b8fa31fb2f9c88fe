import { AppSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";

export async function stopApp(context: CliContext, flags: ApiFlags, app: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const stopped = await gateway.call((options) => gateway.client.stopApp({ app }, options));
  if (flags.json) printJson(context, AppSchema, stopped);
  else context.out.write(`${app} is stopped. Start it again: unkey start ${app}\n`);
}
