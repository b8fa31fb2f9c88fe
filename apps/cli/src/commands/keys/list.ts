import { ListApiKeysResponseSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { printJson } from "../../render/messages.ts";
import { age, instant } from "../../render/quantities.ts";
import { renderTable } from "../../render/table.ts";

export async function listKeys(context: CliContext, flags: ApiFlags): Promise<void> {
  using gateway = openGateway(context, flags);
  const { apiKeys, ...rest } = await gateway.call((options) => gateway.client.listApiKeys({}, options));
  if (flags.json) return printJson(context, ListApiKeysResponseSchema, { apiKeys, ...rest });
  const columns = [
    { title: "KEY" },
    { title: "NAME", shrinks: true },
    { title: "SCOPES", shrinks: true },
    { title: "AGE", align: "right" },
    { title: "EXPIRES" },
    { title: "REVOKED" },
  ] as const;
  const rows = apiKeys.map((key) => ({
    cells: [
      key.apiKeyId,
      key.name,
      key.scopes.join(" "),
      age(key.createdAtMs, context.clock.nowMs()),
      instant(key.expiresAtMs),
      instant(key.revokedAtMs),
    ],
  }));
  context.out.write(renderTable(context.out, columns, rows));
}
