import { BuildStateSchema, ListBuildsResponseSchema } from "@unkey/api/builder";
import { formatBytes } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { type LimitFlag, noteMore } from "../../paging.ts";
import { enumWord, printJson } from "../../render/messages.ts";
import { age } from "../../render/quantities.ts";
import { renderTable } from "../../render/table.ts";

export async function listBuilds(context: CliContext, flags: ApiFlags & LimitFlag): Promise<void> {
  using gateway = openGateway(context, flags);
  const page = await gateway.call((options) => gateway.client.listBuilds({ pageSize: flags.limit }, options));
  if (flags.json) return printJson(context, ListBuildsResponseSchema, page);
  const columns = [
    { title: "BUILD" },
    { title: "STATE" },
    { title: "CACHED" },
    { title: "ROOTFS", align: "right" },
    { title: "AGE", align: "right" },
    { title: "IMAGE", shrinks: true },
    { title: "WHY", shrinks: true },
  ] as const;
  const rows = page.builds.map((build) => ({
    cells: [
      build.buildId,
      enumWord(BuildStateSchema, build.state),
      build.cacheHit ? "yes" : "no",
      build.rootfsBytes === 0n ? "-" : formatBytes(build.rootfsBytes),
      age(build.createdAtMs, context.clock.nowMs()),
      build.image,
      build.failure?.message ?? "",
    ],
  }));
  context.out.write(rows.length === 0 ? "No builds yet.\n" : renderTable(context.out, columns, rows));
  noteMore(context, page.nextPageToken, flags.limit);
}
