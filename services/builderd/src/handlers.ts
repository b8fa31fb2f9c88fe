import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type BuilderService,
  type BuildImageRequest,
  BuildSchema,
  type ImageSource,
  BuildState as ProtoState,
  RootfsFormat,
  type UploadImageHeader,
  type UploadImageRequest,
} from "@unkey/api/builder";
import { type BuildId, parseId, ServiceError, type TenantId } from "@unkey/base";
import { isDigest } from "@unkey/oci";
import type { BuildVerifier } from "./attest/verify-build.ts";
import type { Build, BuildSource } from "./domain/build.ts";
import type { BuildState } from "./domain/build-state.ts";
import { dayEndMs, minutesUsed } from "./domain/quota.ts";
import type { BuildService } from "./service.ts";
import type { UploadService } from "./upload-service.ts";

const defaultPageSize = 100;

const protoStates: Readonly<Record<BuildState, ProtoState>> = {
  pending: ProtoState.PENDING,
  pulling: ProtoState.PULLING,
  extracting: ProtoState.EXTRACTING,
  writing: ProtoState.WRITING,
  registering: ProtoState.REGISTERING,
  completed: ProtoState.COMPLETED,
  failed: ProtoState.FAILED,
  cancelled: ProtoState.CANCELLED,
};

/** The RPCs of unkey.builder.v1.BuilderService. */
export function builderHandlers(
  service: BuildService,
  uploads: UploadService,
  verifier: BuildVerifier,
): ServiceImpl<typeof BuilderService> {
  return {
    buildImage: async (request) => buildMessage(await service.build(startOf(request))),

    getBuild: async ({ tenantId, buildId }) => buildMessage(await service.get(...idsOf(tenantId, buildId))),

    async listBuilds({ tenantId, pageSize, pageToken }) {
      const limit = pageSize === 0 ? defaultPageSize : pageSize;
      const beforeId = pageToken === "" ? "" : parseId("build", pageToken, "page_token");
      const builds = await service.list(parseId("tenant", tenantId, "tenant_id"), limit, beforeId);
      const last = builds.length === limit ? (builds.at(-1)?.buildId ?? "") : "";
      return { builds: builds.map(buildMessage), nextPageToken: last };
    },

    async *watchBuild({ tenantId, buildId }, context) {
      for await (const build of service.watch(...idsOf(tenantId, buildId), context.signal)) yield buildMessage(build);
    },

    async *streamBuildLogs({ tenantId, buildId, follow, afterSequence }, context) {
      const from = { follow, afterSequence: Number(afterSequence) };
      for await (const { atMs, text, sequence } of service.logs(...idsOf(tenantId, buildId), from, context.signal)) {
        yield { atMs: BigInt(atMs), text, sequence: BigInt(sequence) };
      }
    },

    cancelBuild: async ({ tenantId, buildId }) => buildMessage(await service.cancel(...idsOf(tenantId, buildId))),

    async uploadImage(requests) {
      const { header, chunks } = await splitUpload(requests);
      const tenantId = parseId("tenant", header.tenantId, "tenant_id");
      const upload = await uploads.receive({ tenantId, name: header.name, expectedDigest: header.digest }, chunks);
      const { uploadId, digest, sizeBytes, expiresAtMs } = upload;
      return { uploadId, digest, sizeBytes: BigInt(sizeBytes), expiresAtMs: BigInt(expiresAtMs) };
    },

    async discardUpload({ tenantId, uploadId }) {
      await uploads.discard(parseId("tenant", tenantId, "tenant_id"), parseId("upload", uploadId, "upload_id"));
      return {};
    },

    async verifyBuild({ tenantId, buildId }, context) {
      const links = await verifier.verify(await service.get(...idsOf(tenantId, buildId)), context.signal);
      return { verified: links.every(({ holds }) => holds), links: [...links] };
    },

    async getBuildQuota({ tenantId }) {
      const { quota, used, today } = await service.quota(parseId("tenant", tenantId, "tenant_id"));
      return {
        concurrentLimit: quota.concurrent,
        concurrentUsed: used.running,
        dailyLimit: quota.buildsPerDay,
        dailyUsed: used.builds,
        dailyBytesLimit: BigInt(quota.bytesPerDay),
        dailyBytesUsed: BigInt(used.bytes),
        dailyMinutesLimit: quota.minutesPerDay,
        dailyMinutesUsed: minutesUsed(used),
        resetsAtMs: BigInt(dayEndMs(today.nowMs)),
      };
    },
  };
}

function idsOf(tenantId: string, buildId: string): [TenantId, BuildId] {
  return [parseId("tenant", tenantId, "tenant_id"), parseId("build", buildId, "build_id")];
}

function startOf(request: BuildImageRequest) {
  const source = sourceOf(request.image);
  const { username, password } = request.credentials ?? { username: "", password: "" };
  const anonymous = source.kind !== "reference" || (username === "" && password === "");
  return {
    tenantId: parseId("tenant", request.tenantId, "tenant_id"),
    idempotencyKey: request.idempotencyKey,
    request: {
      source,
      plainHttp: request.insecureRegistry,
      format: request.format === RootfsFormat.EXT4 ? ("ext4" as const) : ("erofs" as const),
      argvOverride: request.argvOverride,
    },
    credentials: anonymous ? undefined : { username, password },
  };
}

function sourceOf(image: ImageSource | undefined): BuildSource {
  switch (image?.source.case) {
    case "reference":
      return { kind: "reference", reference: image.source.value };
    case "uploadId":
      return { kind: "upload", uploadId: parseId("upload", image.source.value, "image.upload_id") };
    case "pushed": {
      const { repository, tagOrDigest } = image.source.value;
      if (!isDigest(tagOrDigest)) throw new ServiceError("INVALID_REQUEST", "image.pushed.tag_or_digest: is no digest");
      return { kind: "pushed", repository, digest: tagOrDigest };
    }
    default:
      throw new ServiceError("INVALID_REQUEST", "image: name a reference, an upload or a pushed image");
  }
}

async function splitUpload(
  requests: AsyncIterable<UploadImageRequest>,
): Promise<{ header: UploadImageHeader; chunks: AsyncIterable<Uint8Array> }> {
  const iterator = requests[Symbol.asyncIterator]();
  const first = await iterator.next();
  if (first.done === true || first.value.part.case !== "header") {
    throw new ServiceError("INVALID_REQUEST", "an upload begins with its header");
  }
  async function* chunks(): AsyncGenerator<Uint8Array> {
    for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) {
      if (next.value.part.case !== "chunk") throw new ServiceError("INVALID_REQUEST", "an upload has one header");
      yield next.value.part.value;
    }
  }
  return { header: first.value.part.value, chunks: chunks() };
}

function buildMessage(build: Build) {
  const { request, process, failure } = build;
  const fields: MessageInitShape<typeof BuildSchema> = {
    buildId: build.buildId,
    tenantId: build.tenantId,
    state: protoStates[build.state],
    image: build.imageName,
    imageDigest: build.imageDigest,
    policyDigest: build.policyDigest,
    format: request.format === "ext4" ? RootfsFormat.EXT4 : RootfsFormat.EROFS,
    cacheHit: build.cacheHit,
    rootfsAssetId: build.rootfsAssetId,
    platform: build.platform,
    rootfsBytes: BigInt(build.rootfsBytes),
    provenanceAssetId: build.provenanceAssetId,
    sbomAssetId: build.sbomAssetId,
    steps: build.steps.map((step) => ({
      state: protoStates[step.state],
      startedAtMs: BigInt(step.startedAtMs),
      endedAtMs: BigInt(step.endedAtMs),
      bytesDone: BigInt(step.bytesDone),
      bytesTotal: BigInt(step.bytesTotal),
    })),
    createdAtMs: BigInt(build.createdAtMs),
    ...(failure === undefined ? {} : { failure: { ...failure } }),
    ...(process === undefined
      ? {}
      : {
          process: {
            ...process,
            argv: [...process.argv],
            env: process.env.map(([name, value]) => ({ name, value })),
            groups: [...process.groups],
            exposedPorts: [...process.exposedPorts],
          },
        }),
  };
  return create(BuildSchema, fields);
}
