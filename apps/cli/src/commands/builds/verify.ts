import { BuildVerificationSchema } from "@unkey/api/builder";
import type { ApiFlags } from "../../command.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { CliFailure } from "../../failure.ts";
import { printJson } from "../../render/messages.ts";
import { counted } from "../../render/quantities.ts";
import { plain, styled } from "../../render/terminal.ts";

/** Prints the chain link by link; fails when one does not hold. */
export async function verifyBuild(context: CliContext, flags: ApiFlags, buildId: string): Promise<void> {
  using gateway = openGateway(context, flags);
  const { out } = context;
  const verification = await gateway.call((options) => gateway.client.verifyBuild({ buildId }, options));
  const { links, verified } = verification;
  if (flags.json) printJson(context, BuildVerificationSchema, verification);
  else {
    const longest = Math.max(0, ...links.map(({ name }) => name.length));
    for (const { name, holds, detail } of links) {
      const mark = holds ? styled(out, "green", "holds ") : styled(out, "red", "broken");
      out.write(`${mark}  ${plain(name).padEnd(longest)}  ${plain(detail)}\n`);
    }
  }
  if (verified) {
    if (!flags.json) out.write(`${buildId} is verified: every link holds.\n`);
    return;
  }
  const broken = links.filter(({ holds }) => !holds).length;
  throw new CliFailure(`${buildId} is not verified: ${counted(broken, "link")} of ${links.length} broken`, {
    nextStep: "Read the broken links above; deploy the image again to have it built and signed anew.",
  });
}
