import type { Gateway } from "../../connection/gateway.ts";
import type { CliContext } from "../../context.ts";
import { parseBuildArg, parseBuildSecret } from "../../deploy/engine/build-flags.ts";
import { type BuiltImage, buildImage, type ImageBuild } from "../../deploy/engine/build-image.ts";
import type { ImageSource } from "../../deploy/image-source.ts";
import { CliFailure, usageFailure } from "../../failure.ts";
import type { StepList } from "../../render/step-list.ts";

export type BuildFlags = {
  readonly file?: string;
  readonly target?: string;
  readonly buildArg?: readonly string[];
  readonly secret?: readonly string[];
};

/** What to build, from the flags. */
export function imageBuildOf(
  context: CliContext,
  { target, buildArg = [], secret = [] }: BuildFlags,
  source: Extract<ImageSource, { kind: "dockerfile" }>,
): Omit<ImageBuild, "platform"> {
  return {
    contextDir: source.path,
    dockerfile: source.dockerfile,
    target,
    buildArgs: buildArg.map((input) => parseBuildArg(input, context.env)),
    secrets: secret.map((input) => parseBuildSecret(input, context.cwd)),
  };
}

/** Throws when there is nothing to build but flags that say how. */
export function refuseBuildFlags({ file, target, buildArg, secret }: BuildFlags): void {
  const given = Object.entries({ file, target, "build-arg": buildArg, secret }).find(
    ([, value]) => value !== undefined,
  );
  if (given === undefined) return;
  throw usageFailure(
    `--${given[0]} is for a directory that is built`,
    "Leave it out, or name a directory with a Dockerfile.",
  );
}

/** Builds the image with an engine of this machine, for the platform's VMs. */
export async function buildLocally(
  context: CliContext,
  gateway: Gateway,
  build: Omit<ImageBuild, "platform">,
  { json }: { readonly json: boolean },
  steps: StepList,
): Promise<BuiltImage> {
  const platform = await guestPlatform(gateway);
  return buildImage(
    context,
    { ...build, platform },
    {
      onStep: (step) => steps.update([step]),
      // A live list shows the last line; elsewhere all of them make the log.
      onLine: (line) => {
        if (!json && !context.out.live) context.out.write(`  | ${line}\n`);
      },
    },
  );
}

/** What the platform's VMs run. A key that may not ask for that may deploy: the platform checks the image in any case. */
async function guestPlatform(gateway: Gateway): Promise<string> {
  const platform = await gateway
    .call((options) => gateway.client.getPlatform({}, options))
    .catch((error: unknown) => {
      if (error instanceof CliFailure && error.reason === "SCOPE_MISSING") return { hosts: [] };
      throw error;
    });
  const architectures = platform.hosts.map(({ architecture }) => architecture).filter((name) => name !== "");
  const host = process.arch === "x64" ? "amd64" : process.arch; // as OCI spells it
  return `linux/${architectures.includes(host) ? host : (architectures[0] ?? host)}`;
}
