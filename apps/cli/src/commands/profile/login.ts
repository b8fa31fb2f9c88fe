import { resolve } from "node:path";
import type { JsonFlag } from "../../command.ts";
import { Gateway } from "../../connection/gateway.ts";
import { profilePath, writeProfile } from "../../connection/profile.ts";
import { checkKey, parseUrl, readCa } from "../../connection/target.ts";
import type { CliContext } from "../../context.ts";
import { usageFailure } from "../../failure.ts";
import { readSecret } from "../../read-secret.ts";

type LoginFlags = JsonFlag & {
  readonly apiUrl?: string;
  readonly caFile?: string;
};

/** Nothing is written before the platform has accepted the key. */
export async function login(context: CliContext, flags: LoginFlags): Promise<void> {
  const urlText = flags.apiUrl ?? context.env["UNKEY_API_URL"];
  if (urlText === undefined || urlText === "") {
    throw usageFailure("the address of the platform is missing", "Run `unkey login --api-url https://…`.");
  }
  const url = parseUrl(urlText, flags.apiUrl === undefined ? "environment" : "flag");
  const caText = flags.caFile ?? context.env["UNKEY_CA_FILE"] ?? "";
  const caFile = caText === "" ? undefined : resolve(context.cwd, caText);
  const apiKey = checkKey(await readSecret(context, "API key"), "stdin");
  const ca = caFile === undefined ? {} : { caFile, caPem: readCa(caFile) };
  using gateway = new Gateway({ url, apiKey, ...ca }, context.clock, context.signal);
  const platform = await gateway.call((options) => gateway.client.getPlatform({}, options));
  writeProfile(context.home, { url: url.origin, apiKey, ...(caFile === undefined ? {} : { caFile }) });
  const path = profilePath(context.home);
  if (flags.json)
    context.out.write(`${JSON.stringify({ url: url.origin, tenantId: platform.tenantId, profile: path })}\n`);
  else {
    context.out.write(`${url.origin} accepts the key of ${platform.tenantId}; kept in ${path}.\n`);
    context.out.write(`Images are pushed to ${url.host}/<app>: docker login ${url.host} -u unkey --password-stdin\n`);
  }
}
