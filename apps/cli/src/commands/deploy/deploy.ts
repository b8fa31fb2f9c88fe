import { randomUUID } from "node:crypto";
import { basename, resolve } from "node:path";
import { create } from "@bufbuild/protobuf";
import { CreateDeploymentRequestSchema, type Deployment, DeploymentSchema } from "@unkey/api/gateway";
import { appNameFrom } from "@unkey/base";
import type { ApiFlags } from "../../command.ts";
import type { Gateway } from "../../connection/gateway.ts";
import { openGateway } from "../../connection/open.ts";
import type { CliContext } from "../../context.ts";
import { mergeEnv, parseEnvFlag, readEnvFile } from "../../deploy/env-vars.ts";
import { detachedHint, followDeployment } from "../../deploy/follow.ts";
import { type ImageSource, imageSource, type LocalImage } from "../../deploy/image-source.ts";
import { type ResourceFlags, resourcesOf } from "../../deploy/resources.ts";
import { uploadImage } from "../../deploy/upload.ts";
import { CliFailure, exitCodes, usageFailure } from "../../failure.ts";
import { readSecret } from "../../read-secret.ts";
import { imageText } from "../../render/image.ts";
import { printJson } from "../../render/messages.ts";
import { duration } from "../../render/quantities.ts";
import { type Step, StepList } from "../../render/step-list.ts";
import { styled } from "../../render/terminal.ts";
import { type BuildFlags, buildLocally, imageBuildOf, refuseBuildFlags } from "./local-build.ts";

type DeployFlags = ApiFlags &
  BuildFlags &
  ResourceFlags & {
    readonly app?: string;
    readonly env?: readonly string[];
    readonly envFile?: readonly string[];
    readonly port?: number;
    readonly vms?: number;
    readonly command?: readonly string[];
    readonly healthPath?: string;
    readonly healthDeadline?: number;
    readonly registryUser?: string;
    readonly insecureRegistry: boolean;
    readonly detach: boolean;
  };

/** Builds and uploads what is local, asks for the deployment once, and shows it to its end. */
export async function deploy(context: CliContext, flags: DeployFlags, image: string): Promise<void> {
  const startedAtMs = context.clock.nowMs();
  const source = imageSource(image, context.cwd, flags.file);
  const build = source.kind === "dockerfile" ? imageBuildOf(context, flags, source) : undefined;
  if (build === undefined) refuseBuildFlags(flags);
  const request = await requestOf(context, flags, source);
  using gateway = openGateway(context, flags);
  using steps = new StepList(flags.json ? silent : context.out, () => context.clock.nowMs(), {
    nameWidth: "upload".length,
  });
  const before: Step[] = [];
  const send = async (local: LocalImage): Promise<void> => {
    const upload = await uploadImage(gateway, local, context.clock, (step) => steps.update([...before, step]));
    before.push(upload.step);
    request.image = { source: { case: "uploadId", value: upload.uploadId } };
  };
  if (build !== undefined) {
    await using built = await buildLocally(context, gateway, build, flags, steps);
    before.push(built.step);
    await send(built);
  } else if (source.kind === "archive" || source.kind === "layout") await send(source);
  const deployment = await createOnce(gateway, create(CreateDeploymentRequestSchema, request)).catch(
    async (error: unknown) => {
      await discardRefused(gateway, request.image, error);
      throw error;
    },
  );
  if (flags.detach) {
    if (flags.json) printJson(context, DeploymentSchema, deployment);
    else context.out.write(`${deployment.deploymentId}\n${detachedHint(deployment.deploymentId)}\n`);
    return;
  }
  // A name may mean an image in a registry or one that was pushed here: which one it is must not be a guess.
  if (deployment.pushedImage !== "" && !flags.json) context.out.write(`image: ${imageText(deployment)}\n`);
  const done = await followDeployment(context, gateway, deployment.deploymentId, { json: flags.json, steps, before });
  if (flags.json) return;
  steps[Symbol.dispose]();
  const took = duration(context.clock.nowMs() - startedAtMs);
  context.out.write(`\n${done.app} serves after ${took} at ${styled(context.out, "bold", done.url)}\n`);
}

/** One key for all tries of this invocation: however often the request arrives, there is one deployment. */
function createOnce(
  gateway: Gateway,
  request: Parameters<Gateway["client"]["createDeployment"]>[0],
): Promise<Deployment> {
  const headers = { "idempotency-key": randomUUID() };
  return gateway.call((options) => gateway.client.createDeployment(request, { ...options, headers }), "patient");
}

/** A deployment that is refused leaves no upload behind; one whose answer was lost may still need it. */
async function discardRefused(gateway: Gateway, image: DeployedImage, error: unknown): Promise<void> {
  const refused = error instanceof CliFailure && error.reason !== undefined && error.exitCode !== exitCodes.unavailable;
  if (!refused || image.source.case !== "uploadId") return;
  const uploadId = image.source.value;
  // The refusal is what matters; an upload that stays expires.
  await gateway.call((options) => gateway.client.discardUpload({ uploadId }, options), "once").catch(() => undefined);
}

async function requestOf(context: CliContext, flags: DeployFlags, source: ImageSource) {
  const { port = 0, healthPath, healthDeadline = 0, insecureRegistry } = flags;
  const files = (flags.envFile ?? []).map((path) => readEnvFile(resolve(context.cwd, path)));
  const resources = resourcesOf(flags);
  return {
    app: appOf(flags, source),
    image: imageOf(source),
    env: mergeEnv(
      ...files,
      (flags.env ?? []).map((input) => parseEnvFlag(input, context.env)),
    ),
    port,
    argv: [...(flags.command ?? [])],
    insecureRegistry,
    vmCount: flags.vms ?? 0,
    ...(resources === undefined ? {} : { resources }),
    ...(healthPath === undefined && healthDeadline === 0
      ? {}
      : { healthCheck: { httpPath: healthPath ?? "", deadlineMs: healthDeadline * 1000 } }),
    ...(flags.registryUser === undefined
      ? {}
      : { credentials: await credentialsOf(context, flags.registryUser, source) }),
  };
}

interface DeployedImage {
  source: { case: "reference" | "uploadId"; value: string };
}

/** Empty where the platform names the app after the image. */
function appOf({ app }: DeployFlags, source: ImageSource): string {
  if (app !== undefined || source.kind === "reference") return app ?? "";
  const name = source.kind === "dockerfile" ? appNameFrom(basename(source.path)) : undefined;
  if (name !== undefined) return name;
  throw usageFailure("a local image has no name to call the app by", "Name the app with --app.");
}

function imageOf(source: ImageSource): DeployedImage {
  return { source: { case: "reference", value: source.kind === "reference" ? source.reference : "" } };
}

async function credentialsOf(context: CliContext, username: string, source: ImageSource) {
  if (source.kind !== "reference") {
    throw usageFailure("--registry-user is for an image in a registry", "Leave it out for a local image.");
  }
  const password = context.env["UNKEY_REGISTRY_PASSWORD"] ?? (await readSecret(context, `Password of ${username}`));
  return { username, password };
}

/** With --json the stream itself is the progress. */
const silent = { write: () => undefined, live: false, columns: 80, color: false };
