import { ApiKeySchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";

export async function revokeKey(context: CliContext, flags: ApiFlags, apiKeyId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const key = await gateway.call((options) => gateway.client.revokeApiKey({ apiKeyId }, options));
  if (flags.json) printJson(context, ApiKeySchema, key);
  else context.out.write(`${apiKeyId} is revoked.\n`);
}
