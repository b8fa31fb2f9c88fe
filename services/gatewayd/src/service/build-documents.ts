import type { Client } from "@connectrpc/connect";
import { AssetService } from "@unkey/api/asset";
import { type Build, BuildState } from "@unkey/api/builder";
import { formatBytes, isServiceError, mib, ServiceError } from "@unkey/base";
import type { RpcChannel } from "@unkey/rpc";
import type { Acting, Platform } from "../adapters/platform.ts";

const queryTimeoutMs = 30_000;
const downloadTimeoutMs = 10 * 60_000;
/** builderd reads no longer ones when it verifies a build. */
const maxDocumentBytes = 96 * mib;

/** What is attached to a build's root filesystem. */
export type BuildDocument = "package list" | "provenance";

/** Hands out package lists and provenance: builderd says whose build it is and which assets they are, assetmanagerd has the bytes. */
export class BuildDocuments {
  readonly #platform: Pick<Platform, "builder" | "call">;
  readonly #assets: Client<typeof AssetService>;

  constructor(platform: Pick<Platform, "builder" | "call">, assets: RpcChannel) {
    this.#platform = platform;
    this.#assets = assets.client(AssetService);
  }

  /** The document's bytes, of which assetmanagerd has checked the digest when they end. Throws BUILD_NOT_FOUND, BUILD_NOT_COMPLETED, BUILD_DOCUMENT_GONE. */
  async *read(
    acting: Acting,
    buildId: string,
    document: BuildDocument,
    signal: AbortSignal,
  ): AsyncGenerator<{ chunk: Uint8Array }> {
    const { tenantId } = acting;
    const limits = (timeoutMs: number) => this.#platform.call(acting, { signal, timeoutMs });
    const build = await this.#platform.builder.getBuild({ tenantId, buildId }, limits(queryTimeoutMs));
    const assetId = assetOf(build, document);
    try {
      const { sizeBytes } = await this.#assets.getAsset({ tenantId, assetId }, limits(queryTimeoutMs));
      if (sizeBytes > maxDocumentBytes) throw tooLarge(document, sizeBytes);
      yield* this.#assets.downloadAsset({ tenantId, assetId }, limits(downloadTimeoutMs));
    } catch (error) {
      const isGone = isServiceError(error, "ASSET_NOT_FOUND") || isServiceError(error, "ASSET_NOT_AVAILABLE");
      throw isGone ? gone(buildId, document, error) : error;
    }
  }
}

function assetOf(build: Build, document: BuildDocument): string {
  const { buildId, state } = build;
  if (state !== BuildState.COMPLETED) {
    const hasEnded = state === BuildState.FAILED || state === BuildState.CANCELLED;
    const what = hasEnded
      ? `was ${state === BuildState.FAILED ? "not completed: it failed" : "cancelled"}`
      : "is at work";
    throw new ServiceError("BUILD_NOT_COMPLETED", `${buildId} ${what}, so it has no ${document}`, {
      nextStep: hasEnded
        ? `\`unkey builds show ${buildId}\` says why; deploy the image again.`
        : `Wait until it has completed: \`unkey builds logs -f ${buildId}\`.`,
    });
  }
  const assetId = document === "provenance" ? build.provenanceAssetId : build.sbomAssetId;
  if (assetId === "") throw gone(buildId, document);
  return assetId;
}

function gone(buildId: string, document: BuildDocument, cause?: unknown): ServiceError {
  const message = `the ${document} of ${buildId} is not there any more: it goes with the root filesystem, when that has idled`;
  return new ServiceError("BUILD_DOCUMENT_GONE", message, { cause });
}

function tooLarge(document: BuildDocument, sizeBytes: bigint): ServiceError {
  return new ServiceError(
    "ASSET_TOO_LARGE",
    `the ${document} has ${formatBytes(sizeBytes)}, too many to be handed out`,
    {
      nextStep: "Ask the platform's operator for it.",
    },
  );
}
