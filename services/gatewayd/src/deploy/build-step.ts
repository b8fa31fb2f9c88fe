import type { CallOptions } from "@connectrpc/connect";
import { type Build, BuildState, type RegistryCredentials } from "@unkey/api/builder";
import { type DeploymentId, type ErrorReason, errorCatalogue, formatBytes, ServiceError } from "@unkey/base";
import type { Platform } from "../adapters/platform.ts";
import { planProcess } from "../domain/release-plan.ts";
import type { WorkStore } from "../store/work-store.ts";
import { BuildFailed, type Step, type Work } from "./step.ts";

/** Registry logins of deployments under way. They live in the memory of the replica that accepted them, nowhere else. */
export type CredentialVault = Map<DeploymentId, RegistryCredentials>;

const buildTimeoutMs = 30 * 60_000;
const callTimeoutMs = 30_000;

const verbs = new Map<BuildState, string>([
  [BuildState.PENDING, "waiting for its turn"],
  [BuildState.PULLING, "pulling"],
  [BuildState.EXTRACTING, "applying layers"],
  [BuildState.WRITING, "writing the root filesystem"],
  [BuildState.REGISTERING, "registering"],
]);
const endStates: readonly BuildState[] = [BuildState.COMPLETED, BuildState.FAILED, BuildState.CANCELLED];

/** Image → root filesystem: builderd does it under the deployment's id, so asking again finds the same build. */
export function buildStep(deps: {
  readonly platform: Platform;
  readonly store: WorkStore;
  readonly vault: CredentialVault;
}): Step {
  const { platform, store, vault } = deps;
  const { builder } = platform;

  const startOrFind = async (work: Work, options: CallOptions): Promise<Build> => {
    const { deploymentId, tenantId, buildId, request, withCredentials } = work.deployment;
    if (buildId !== "") return builder.getBuild({ tenantId, buildId }, options);
    const credentials = vault.get(deploymentId);
    if (withCredentials && !credentials) {
      throw new ServiceError(
        "CREDENTIALS_LOST",
        "the gateway restarted before the build had begun and forgot the login",
      );
    }
    const build = await builder.buildImage(
      {
        tenantId,
        idempotencyKey: deploymentId,
        insecureRegistry: request.insecureRegistry,
        argvOverride: request.argv,
        ...(request.image ? { image: request.image } : {}),
        ...(credentials ? { credentials } : {}),
      },
      options,
    );
    // An upload's id says nothing to people; the builder knows its name.
    const uploaded = request.image?.source.case === "uploadId";
    await store.saveBuild(work.claim, { buildId: build.buildId, ...(uploaded ? { imageAsked: build.image } : {}) });
    return build;
  };

  return {
    timeoutMs: buildTimeoutMs,

    async run(work, signal) {
      const { claim, deployment, acting } = work;
      const { tenantId, request } = deployment;
      let build = await startOrFind(work, platform.call(acting, { signal, timeoutMs: callTimeoutMs }));
      if (!endStates.includes(build.state)) {
        const watch = builder.watchBuild({ tenantId, buildId: build.buildId }, platform.call(acting, { signal }));
        for await (build of watch) await work.progress(describe(build));
      }
      if (build.state !== BuildState.COMPLETED) throw failureOf(build);
      const { process } = build;
      if (!process) throw new ServiceError("INTERNAL", `${build.buildId} is complete but does not say how to run it`);
      const { port } = planProcess(process, { argv: request.argv, env: request.env, port: request.port });
      const { imageDigest, rootfsAssetId } = build;
      await store.saveBuild(claim, { imageDigest, rootfsAssetId, process, port });
      const size = formatBytes(build.rootfsBytes);
      return { detail: build.cacheHit ? `cached, ${size}` : `built, ${size}` };
    },

    async undo(work, signal) {
      const { buildId, rootfsAssetId, tenantId, request } = work.deployment;
      vault.delete(work.deployment.deploymentId);
      const options = platform.call(work.acting, { signal, timeoutMs: callTimeoutMs });
      const source = request.image?.source;
      // A build frees its upload; without one nobody else does before it expires.
      if (buildId === "" && source?.case === "uploadId") {
        await builder.discardUpload({ tenantId, uploadId: source.value }, options);
      }
      // A complete build is a cache entry that the next deployment wants.
      if (buildId === "" || rootfsAssetId !== "") return;
      await builder.cancelBuild({ tenantId, buildId }, options);
    },
  };
}

function describe(build: Build): string {
  const verb = verbs.get(build.state) ?? "building";
  const step = build.steps.at(-1);
  if (!step || step.bytesTotal === 0n) return verb;
  return `${verb}, ${formatBytes(step.bytesDone)} of ${formatBytes(step.bytesTotal)}`;
}

function failureOf(build: Build): ServiceError {
  if (build.failure) {
    const { reason, message, nextStep } = build.failure;
    if (Object.hasOwn(errorCatalogue, reason)) return new BuildFailed(reason as ErrorReason, message, { nextStep });
    return new ServiceError("FAILED_PRECONDITION", message, { nextStep, metadata: { peerReason: reason } });
  }
  if (build.state === BuildState.CANCELLED) {
    return new ServiceError("CANCELED", `${build.buildId} was cancelled`, { nextStep: "Deploy again." });
  }
  // The stream ended early: whoever runs the step tries again.
  return new ServiceError("DEPENDENCY_UNAVAILABLE", "builderd stopped following the build");
}
