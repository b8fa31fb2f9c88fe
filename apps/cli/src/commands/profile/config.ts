import type { ApiFlags } from "../../command.ts";
import { profilePath } from "../../connection/profile.ts";
import { resolveTarget } from "../../connection/target.ts";
import type { CliContext } from "../../context.ts";
import { renderFields } from "../../render/fields.ts";

/** The key's value is never shown, only where it comes from. */
export function showConfig(context: CliContext, flags: ApiFlags): void {
  const { env, home, cwd } = context;
  const { url, caFile = "", sources } = resolveTarget({ flags, env, home, cwd });
  if (flags.json) {
    const shown = { url: url.origin, caFile, home, profile: profilePath(home), sources };
    context.out.write(`${JSON.stringify(shown, undefined, 2)}\n`);
    return;
  }
  context.out.write(
    renderFields(context.out, [
      ["address", `${url.origin} (${sources.url})`],
      ["API key", `set (${sources.apiKey})`],
      ["authority", caFile === "" ? "the system's" : `${caFile} (${sources.ca})`],
      ["home", home],
      ["profile", profilePath(home)],
    ]),
  );
}
