import type { ServiceImpl } from "@connectrpc/connect";
import type { AppendUploadHeader, AssetService as AssetServiceDesc, UploadHeader } from "@unkey/api/asset";
import { ServiceError } from "@unkey/base";
import { callerOf } from "@unkey/rpc";
import type { Assets } from "./assets.ts";
import type { Collector } from "./collector.ts";
import {
  methodMessages,
  toAsset,
  toAssetId,
  toDeclaration,
  toDescription,
  toDigest,
  toLease,
  toLeaseId,
  toNumber,
  toOwner,
  toPartIds,
  toQuery,
} from "./messages.ts";
import type { Builds } from "./ports.ts";
import type { Staging } from "./staging.ts";
import type { Uploads } from "./uploads.ts";

/** A sender that says nothing for so long has gone. */
const uploadIdleMs = 60_000;

export interface AssetVerbs {
  readonly assets: Assets;
  readonly uploads: Uploads;
  readonly staging: Staging;
  readonly collector: Collector;
  readonly builds: Builds | undefined;
}

/** The RPCs of unkey.asset.v1.AssetService. */
export function assetHandlers({
  assets,
  uploads,
  staging,
  collector,
  builds,
}: AssetVerbs): ServiceImpl<typeof AssetServiceDesc> {
  return {
    async uploadAsset(requests, context) {
      const { signal } = callerOf(context);
      const parts = partsOf(requests);
      const declaration = toDeclaration(await headerOf<UploadHeader>(parts));
      return toAsset(await uploads.upload(declaration, chunksOf(parts), signal));
    },
    async registerAsset({ header }) {
      if (header === undefined) throw new ServiceError("INVALID_REQUEST", "header: is required");
      return toAsset(await assets.register(toDeclaration(header)));
    },
    async beginUpload(request) {
      return toAsset(await uploads.begin(toDescription(request), request.uploadKey, toPartIds(request.partIds)));
    },
    async appendUpload(requests, context) {
      const { signal } = callerOf(context);
      const parts = partsOf(requests);
      const { tenantId, assetId, offset, sourcePath } = await headerOf<AppendUploadHeader>(parts);
      if (sourcePath !== "") {
        const upload = { owner: toOwner(tenantId), id: toAssetId(assetId), sourcePath };
        return toAsset(await uploads.adopt(upload, signal));
      }
      const at = { owner: toOwner(tenantId), id: toAssetId(assetId), offset: toNumber(offset) };
      return toAsset(await uploads.append(at, chunksOf(parts), signal));
    },
    async finishUpload({ tenantId, assetId, digest, sizeBytes }, context) {
      const upload = { owner: toOwner(tenantId), id: toAssetId(assetId) };
      const content = { expected: digest === "" ? undefined : toDigest(digest), sizeBytes: toNumber(sizeBytes) };
      return toAsset(await uploads.finish({ ...upload, ...content }, callerOf(context).signal));
    },
    async cancelUpload({ tenantId, assetId }) {
      await uploads.cancel({ owner: toOwner(tenantId), id: toAssetId(assetId) });
      return {};
    },
    async getAsset({ tenantId, assetId }) {
      return toAsset(await assets.get(toOwner(tenantId), toAssetId(assetId)));
    },
    async listAssets(request) {
      const query = toQuery(request);
      const found = await assets.list(query);
      const nextPageToken = found.length < query.limit ? "" : (found.at(-1)?.id ?? "");
      return { assets: found.map(toAsset), nextPageToken };
    },
    async queryAssets({ query, buildImage }, context) {
      if (query === undefined) throw new ServiceError("INVALID_REQUEST", "query: is required");
      const found = await assets.list(toQuery(query));
      if (found.length > 0 || buildImage === "") return { assets: found.map(toAsset) };
      if (builds === undefined) {
        throw new ServiceError("BUILDS_NOT_CONFIGURED", "build_image: this assetmanagerd knows no builderd");
      }
      const tenantId = toOwner(query.tenantId);
      if (tenantId === "") throw new ServiceError("INVALID_REQUEST", "build_image: needs a tenant to build for");
      return { buildId: await builds.start(tenantId, buildImage, callerOf(context)) };
    },
    async *downloadAsset({ tenantId, assetId, offset }, context) {
      const { signal } = callerOf(context);
      for await (const chunk of assets.download(toOwner(tenantId), toAssetId(assetId), toNumber(offset), signal)) {
        yield { chunk };
      }
    },
    async prepareAssets(request, context) {
      const { lease, staged } = await staging.prepare(
        {
          tenantId: toOwner(request.tenantId),
          leaseKey: request.leaseKey,
          placements: request.placements.map(({ assetId, fileName }) => ({ assetId: toAssetId(assetId), fileName })),
          targetDir: request.targetDir,
          leaseMs: toNumber(request.leaseMs),
        },
        callerOf(context).signal,
      );
      return {
        lease: toLease(lease),
        staged: staged.map((file) => ({ ...file, method: methodMessages[file.method] })),
      };
    },
    async renewLease({ tenantId, leaseId, leaseMs }) {
      return toLease(await staging.renewLease(toOwner(tenantId), toLeaseId(leaseId), toNumber(leaseMs)));
    },
    async releaseLease({ tenantId, leaseId }) {
      await staging.releaseLease(toOwner(tenantId), toLeaseId(leaseId));
      return {};
    },
    async listLeases({ tenantId, assetId }) {
      const leases = await staging.listLeases(toOwner(tenantId), assetId === "" ? undefined : toAssetId(assetId));
      return { leases: leases.map(toLease) };
    },
    async deleteAsset({ tenantId, assetId }) {
      return toAsset(await assets.giveUp(toOwner(tenantId), toAssetId(assetId)));
    },
    async collectGarbage({ dryRun }, context) {
      const { marked, swept, freedBytes } = await collector.collect(callerOf(context).signal, { dryRun });
      return {
        markedAssetIds: [...marked.ids],
        sweptAssetIds: [...swept.ids],
        freedBytes: BigInt(freedBytes),
        markedCount: BigInt(marked.count),
        sweptCount: BigInt(swept.count),
      };
    },
    async getStorageUsage({ tenantId }) {
      const { storedBytes, assetCount, quota } = await assets.usage(toOwner(tenantId));
      return {
        storedBytes: BigInt(storedBytes),
        assetCount: BigInt(assetCount),
        quotaBytes: BigInt(quota.bytes),
        quotaAssets: BigInt(quota.assets),
      };
    },
  };
}

type Part<Header> =
  | { readonly case: "header"; readonly value: Header }
  | { readonly case: "chunk"; readonly value: Uint8Array }
  | { readonly case: undefined; readonly value?: undefined };

/** The parts of a stream; throws DEADLINE_EXCEEDED when its sender falls silent. */
async function* partsOf<P extends Part<unknown>>(messages: AsyncIterable<{ readonly part: P }>): AsyncGenerator<P> {
  const source = messages[Symbol.asyncIterator]();
  for (;;) {
    const { done, value } = await soon(source.next());
    if (done === true) return;
    yield value.part;
  }
}

async function soon<T>(promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new ServiceError("DEADLINE_EXCEEDED", `nothing arrived for ${uploadIdleMs} ms`)),
      uploadIdleMs,
    );
    timer.unref();
  });
  try {
    return await Promise.race([promise, silence]);
  } finally {
    clearTimeout(timer);
  }
}

async function headerOf<Header>(parts: AsyncIterator<Part<Header>>): Promise<Header> {
  const { done, value } = await parts.next();
  if (done === true || value.case !== "header") {
    throw new ServiceError("INVALID_REQUEST", "the first message is not the header");
  }
  return value.value;
}

async function* chunksOf(parts: AsyncIterable<Part<unknown>>): AsyncGenerator<Uint8Array> {
  for await (const part of parts) {
    if (part.case !== "chunk") throw new ServiceError("INVALID_REQUEST", "a second header arrived");
    yield part.value;
  }
}
