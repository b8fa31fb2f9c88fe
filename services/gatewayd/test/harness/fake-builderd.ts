import { createHash } from "node:crypto";
import { clone, create } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import {
  type Build,
  BuilderService,
  type BuildImageRequest,
  BuildSchema,
  BuildState,
  type UploadImageRequest,
} from "@unkey/api/builder";
import { newId, ServiceError } from "@unkey/base";

export type BuilderMethod = "buildImage" | "getBuild" | "watchBuild" | "cancelBuild";

/** A builderd of the contract that builds nothing: an image is what its reference says it is. */
export class FakeBuilderd {
  readonly builds = new Map<string, { build: Build; readonly request: BuildImageRequest }>();
  readonly calls: BuilderMethod[] = [];
  readonly uploads: { readonly digest: string; readonly size: number; readonly name: string }[] = [];
  readonly discarded: string[] = [];
  before: (method: BuilderMethod) => Promise<void> | void = () => undefined;
  after: (method: BuilderMethod) => Promise<void> | void = () => undefined;
  /** Decides how a build ends; the default declares port 0, meaning none. */
  finish: (build: Build, request: BuildImageRequest) => Promise<void> | void = (build) => {
    build.state = BuildState.COMPLETED;
  };

  readonly routes = (router: ConnectRouter): void => {
    router.service(BuilderService, {
      buildImage: (request) =>
        this.#verb("buildImage", () => {
          const known = [...this.builds.values()].find(
            (each) => each.request.idempotencyKey === request.idempotencyKey,
          );
          if (known) return known.build;
          const build = create(BuildSchema, {
            buildId: newId("build"),
            tenantId: request.tenantId,
            state: BuildState.PULLING,
            image:
              request.image?.source.case === "pushed"
                ? request.image.source.value.repository
                : (request.image?.source.value ?? ""),
            imageDigest: `sha256:${"a".repeat(64)}`,
            rootfsAssetId: newId("asset"),
            rootfsBytes: 1_000_000n,
            process: { argv: ["/bin/app"], env: [{ name: "PATH", value: "/bin" }], workingDir: "/" },
            createdAtMs: BigInt(Date.now()),
          });
          this.builds.set(build.buildId, { build, request });
          return build;
        }),
      getBuild: ({ buildId, tenantId }) => this.#verb("getBuild", () => this.#mustFind(buildId, tenantId).build),
      listBuilds: ({ tenantId }) => ({
        builds: [...this.builds.values()].map(({ build }) => build).filter((build) => build.tenantId === tenantId),
      }),
      watchBuild: ({ buildId, tenantId }) => this.#watch(buildId, tenantId),
      cancelBuild: ({ buildId, tenantId }) =>
        this.#verb("cancelBuild", () => {
          const { build } = this.#mustFind(buildId, tenantId);
          build.state = BuildState.CANCELLED;
          return build;
        }),
      uploadImage: (requests) => this.#upload(requests),
      discardUpload: ({ uploadId }) => {
        this.discarded.push(uploadId);
        return {};
      },
      streamBuildLogs: ({ buildId, tenantId, afterSequence }) => this.#logs(buildId, tenantId, afterSequence),
      getBuildQuota: ({ tenantId }) => ({
        dailyLimit: 500,
        dailyUsed: [...this.builds.values()].filter(({ build }) => build.tenantId === tenantId).length,
      }),
    });
  };

  async *#watch(buildId: string, tenantId: string): AsyncGenerator<Build> {
    this.calls.push("watchBuild");
    await this.before("watchBuild");
    const entry = this.#mustFind(buildId, tenantId);
    yield clone(BuildSchema, entry.build);
    if (entry.build.state === BuildState.PULLING) await this.finish(entry.build, entry.request);
    await this.after("watchBuild");
    yield clone(BuildSchema, entry.build);
  }

  async *#logs(buildId: string, tenantId: string, afterSequence: bigint) {
    this.#mustFind(buildId, tenantId);
    for (let sequence = afterSequence + 1n; sequence <= 3n; sequence++) yield { sequence, text: `line ${sequence}` };
  }

  async #upload(requests: AsyncIterable<UploadImageRequest>) {
    const hash = createHash("sha256");
    let size = 0;
    let tenantId = "";
    let name = "";
    for await (const { part } of requests) {
      if (part.case === "header") ({ tenantId, name } = part.value);
      if (part.case !== "chunk") continue;
      hash.update(part.value);
      size += part.value.byteLength;
    }
    if (tenantId === "") throw new ServiceError("INVALID_REQUEST", "no header");
    const digest = `sha256:${hash.digest("hex")}`;
    this.uploads.push({ digest, size, name });
    return { uploadId: newId("upload"), digest, sizeBytes: BigInt(size), expiresAtMs: BigInt(Date.now() + 3_600_000) };
  }

  #mustFind(buildId: string, tenantId: string) {
    const entry = this.builds.get(buildId);
    if (entry?.build.tenantId !== tenantId)
      throw new ServiceError("BUILD_NOT_FOUND", `the tenant has no build ${buildId}`);
    return entry;
  }

  async #verb<T>(method: BuilderMethod, effect: () => T): Promise<T> {
    this.calls.push(method);
    await this.before(method);
    const result = effect();
    await this.after(method);
    return result;
  }
}
