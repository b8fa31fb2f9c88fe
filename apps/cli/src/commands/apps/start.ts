import { AppSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";

export async function startApp(context: CliContext, flags: ApiFlags, app: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const started = await gateway.call((options) => gateway.client.startApp({ app }, options));
  if (flags.json) printJson(context, AppSchema, started);
  else context.out.write(`${app} serves at ${started.url}\n`);
}
