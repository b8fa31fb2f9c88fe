import { CreateApiKeyResponseSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";

const dayMs = 86_400_000;

type CreateKeyFlags = ApiFlags & {
  readonly scope: readonly string[];
  readonly days?: number;
};

/** The key alone goes to stdout, so that it can be piped into a file; what there is to say goes to stderr. */
export async function createKey(context: CliContext, flags: CreateKeyFlags, name: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const expiresAtMs = flags.days === undefined ? 0n : BigInt(context.clock.nowMs() + flags.days * dayMs);
  const created = await gateway.call(
    (options) => gateway.client.createApiKey({ name, scopes: [...flags.scope], expiresAtMs }, options),
    "once", // sent again, it would make a second key
  );
  if (flags.json) return printJson(context, CreateApiKeyResponseSchema, created);
  context.out.write(`${created.secret}\n`);
  context.err.write(`This is ${created.apiKey?.apiKeyId ?? "the key"}; it cannot be shown again.\n`);
}
