import { type App, AppSchema, AppState, AppStateSchema, ListAppsResponseSchema } from "@unkey/api/gateway";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { type LimitFlag, noteMore } from "../../paging.ts";
import { enumWord, printJson } from "../../render/messages.ts";
import { age } from "../../render/quantities.ts";
import { renderTable } from "../../render/table.ts";

export async function listApps(context: CliContext, flags: ApiFlags & LimitFlag, app?: string): Promise<void> {
  using gateway = openGateway(context, flags);
  if (app !== undefined) {
    const found = await gateway.call((options) => gateway.client.getApp({ app }, options));
    if (flags.json) printJson(context, AppSchema, found);
    else printApps(context, [found]);
    return;
  }
  const page = await gateway.call((options) => gateway.client.listApps({ pageSize: flags.limit }, options));
  if (flags.json) return printJson(context, ListAppsResponseSchema, page);
  if (page.apps.length === 0) context.out.write("No apps yet. Deploy one: unkey deploy <image>\n");
  else printApps(context, page.apps);
  noteMore(context, page.nextPageToken, flags.limit);
}

export function printApps(context: CliContext, apps: readonly App[]): void {
  const columns = [
    { title: "APP" },
    { title: "STATE" },
    { title: "VMS", align: "right" },
    { title: "URL" },
    { title: "IMAGE", shrinks: true },
    { title: "AGE", align: "right" },
  ] as const;
  const rows = apps.map((app) => ({
    cells: [
      app.name,
      enumWord(AppStateSchema, app.state),
      String(app.vmIds.length),
      app.url || "-",
      app.image || "-",
      age(app.createdAtMs, context.clock.nowMs()),
    ],
  }));
  context.out.write(renderTable(context.out, columns, rows));
  noteEmpty(context, apps);
}

/** Says on stderr what to do about apps that never served. */
function noteEmpty(context: CliContext, apps: readonly App[]): void {
  const [first, ...others] = apps.filter(({ state }) => state === AppState.EMPTY);
  if (first === undefined) return;
  const which = others.length === 0 ? first.name : `${first.name} and ${others.length} more`;
  context.err.write(
    `Nothing of ${which} has served yet. Why: unkey deployments --app ${first.name}   Remove it: unkey delete ${first.name}\n`,
  );
}
