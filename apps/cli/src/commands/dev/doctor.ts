import type { JsonFlag } from "../../command.ts";
import type { CliContext } from "../../context.ts";
import { checkHost } from "../../dev/preflight.ts";
import { CliFailure, exitCodes } from "../../failure.ts";
import { styled } from "../../render/terminal.ts";

export function devDoctor(context: CliContext, flags: JsonFlag): void {
  const { out } = context;
  const checks = checkHost({ env: context.env, uid: process.getuid?.() ?? -1 });
  if (flags.json) out.write(`${JSON.stringify(checks, undefined, 2)}\n`);
  else {
    for (const { name, ok, detail } of checks) {
      const mark = ok ? styled(out, "green", "✓") : styled(out, "red", "✗");
      out.write(`${mark} ${name.padEnd(20)} ${detail}\n`);
    }
  }
  const missing = checks.filter(({ ok }) => !ok);
  if (missing.length === 0) return;
  throw new CliFailure(`this host lacks ${missing.map(({ name }) => name).join(", ")}`, {
    nextStep: missing.map(({ nextStep }) => nextStep).join("; "),
    exitCode: exitCodes.usage,
  });
}
