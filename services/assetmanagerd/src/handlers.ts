import { create } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type Asset as AssetMessage,
  AssetSchema,
  type AssetService as AssetServiceDesc,
  AssetKind as KindMessage,
  type Lease as LeaseMessage,
  LeaseSchema,
  type ListAssetsRequest,
  StagingMethod as MethodMessage,
  AssetState as StateMessage,
  type UploadAssetRequest,
  type UploadHeader,
} from "@unkey/api/asset";
import { type AssetId, type LeaseId, parseId, ServiceError } from "@unkey/base";
import { callerOf } from "@unkey/rpc";
import {
  type Asset,
  type AssetDeclaration,
  type AssetKind,
  type AssetState,
  type Lease,
  type Owner,
  parseDigest,
} from "./domain/asset.ts";
import type { AssetQuery, StagingMethod } from "./ports.ts";
import type { AssetService } from "./service.ts";

const defaultPageSize = 100;
/** A sender that says nothing for so long has gone. */
const uploadIdleMs = 60_000;

/** The RPCs of unkey.asset.v1.AssetService. */
export function assetHandlers(service: AssetService): Partial<ServiceImpl<typeof AssetServiceDesc>> {
  return {
    async uploadAsset(requests, context) {
      const { signal } = callerOf(context);
      const messages = requests[Symbol.asyncIterator]();
      const first = await nextPart(messages);
      if (first?.case !== "header") throw new ServiceError("INVALID_REQUEST", "the first message is not the header");
      return toAsset(await service.upload(toDeclaration(first.value), chunksOf(messages), signal));
    },
    async registerAsset({ header }) {
      if (header === undefined) throw new ServiceError("INVALID_REQUEST", "header: is required");
      return toAsset(await service.register(toDeclaration(header)));
    },
    async getAsset({ tenantId, assetId }) {
      return toAsset(await service.get(toOwner(tenantId), toAssetId(assetId)));
    },
    async listAssets(request) {
      const query = toQuery(request);
      const assets = await service.list(query);
      const nextPageToken = assets.length < query.limit ? "" : (assets.at(-1)?.id ?? "");
      return { assets: assets.map(toAsset), nextPageToken };
    },
    async queryAssets({ query, buildImage }) {
      if (query === undefined) throw new ServiceError("INVALID_REQUEST", "query: is required");
      if (buildImage !== "") {
        throw new ServiceError("UNIMPLEMENTED", "build_image: builds are started by the gateway in this release");
      }
      return { assets: (await service.list(toQuery(query))).map(toAsset) };
    },
    async *downloadAsset({ tenantId, assetId, offset }, context) {
      const { signal } = callerOf(context);
      for await (const chunk of service.download(toOwner(tenantId), toAssetId(assetId), toNumber(offset), signal)) {
        yield { chunk };
      }
    },
    async prepareAssets(request, context) {
      const { lease, staged } = await service.prepare(
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
      return toLease(await service.renewLease(toOwner(tenantId), toLeaseId(leaseId), toNumber(leaseMs)));
    },
    async releaseLease({ tenantId, leaseId }) {
      await service.releaseLease(toOwner(tenantId), toLeaseId(leaseId));
      return {};
    },
    async listLeases({ tenantId, assetId }) {
      const leases = await service.leases(toOwner(tenantId), assetId === "" ? undefined : toAssetId(assetId));
      return { leases: leases.map(toLease) };
    },
    async deleteAsset({ tenantId, assetId }) {
      return toAsset(await service.delete(toOwner(tenantId), toAssetId(assetId)));
    },
    async collectGarbage({ dryRun }, context) {
      const { marked, swept, freedBytes } = await service.collect(callerOf(context).signal, { dryRun });
      return { markedAssetIds: [...marked], sweptAssetIds: [...swept], freedBytes: BigInt(freedBytes) };
    },
    async getStorageUsage({ tenantId }) {
      const { storedBytes, assetCount, quotaBytes } = await service.usage(toOwner(tenantId));
      return { storedBytes: BigInt(storedBytes), assetCount: BigInt(assetCount), quotaBytes: BigInt(quotaBytes) };
    },
  };
}

const kindMessages: Readonly<Record<AssetKind, KindMessage>> = {
  kernel: KindMessage.KERNEL,
  initrd: KindMessage.INITRD,
  rootfs: KindMessage.ROOTFS,
  disk_image: KindMessage.DISK_IMAGE,
  snapshot: KindMessage.SNAPSHOT,
  provenance: KindMessage.PROVENANCE,
  sbom: KindMessage.SBOM,
};

const stateMessages: Readonly<Record<AssetState, StateMessage>> = {
  available: StateMessage.AVAILABLE,
  deleting: StateMessage.DELETING,
  error: StateMessage.ERROR,
};

const methodMessages: Readonly<Record<StagingMethod, MethodMessage>> = {
  hard_link: MethodMessage.HARD_LINK,
  reflink: MethodMessage.REFLINK,
  copy: MethodMessage.COPY,
};

/** Empty stands for the platform: the service that calls speaks for itself, which the rpc layer has checked. */
function toOwner(tenantId: string): Owner {
  return tenantId === "" ? "" : parseId("tenant", tenantId, "tenant_id");
}

const toAssetId = (text: string): AssetId => parseId("asset", text, "asset_id");
const toLeaseId = (text: string): LeaseId => parseId("lease", text, "lease_id");

/** Lengths and durations; the contract keeps durations small, and no store holds 2^53 bytes. */
function toNumber(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new ServiceError("INVALID_REQUEST", `${value} is too large`);
  return Number(value);
}

function toKind(message: KindMessage): AssetKind | undefined {
  return (Object.keys(kindMessages) as AssetKind[]).find((kind) => kindMessages[kind] === message);
}

function toDeclaration(header: UploadHeader): AssetDeclaration {
  const kind = toKind(header.kind);
  if (kind === undefined) throw new ServiceError("INVALID_REQUEST", "kind: is required");
  const digest = parseDigest(header.digest);
  if (digest === undefined) throw new ServiceError("INVALID_REQUEST", "digest: is not sha256:<64 hex digits>");
  for (const [name, value] of Object.entries(header.labels)) {
    if (name.length === 0 || name.length > 128 || value.length > 1024) {
      throw new ServiceError("INVALID_REQUEST", "labels: a name has 1 to 128 characters, a value at most 1024");
    }
  }
  const { name, labels } = header;
  return { owner: toOwner(header.tenantId), name, kind, digest, sizeBytes: toNumber(header.sizeBytes), labels };
}

function toQuery(request: ListAssetsRequest): AssetQuery {
  const kind = toKind(request.kind);
  if (kind === undefined && request.kind !== KindMessage.UNSPECIFIED) {
    throw new ServiceError("INVALID_REQUEST", `kind: ${request.kind} is unknown`);
  }
  return {
    viewer: toOwner(request.tenantId),
    ...(kind === undefined ? {} : { kind }),
    labels: request.labels,
    limit: request.pageSize === 0 ? defaultPageSize : request.pageSize,
    ...(request.pageToken === "" ? {} : { before: parseId("asset", request.pageToken, "page_token") }),
  };
}

function toAsset(asset: Asset): AssetMessage {
  return create(AssetSchema, {
    assetId: asset.id,
    tenantId: asset.owner,
    name: asset.name,
    kind: kindMessages[asset.kind],
    state: stateMessages[asset.state],
    digest: asset.digest,
    sizeBytes: BigInt(asset.sizeBytes),
    labels: asset.labels,
    createdAtMs: BigInt(asset.createdAtMs),
    lastUsedAtMs: BigInt(asset.lastUsedAtMs),
    leaseCount: asset.leaseCount,
  });
}

function toLease(lease: Lease): LeaseMessage {
  return create(LeaseSchema, {
    leaseId: lease.id,
    tenantId: lease.tenantId,
    leaseKey: lease.key,
    assetIds: [...lease.assetIds],
    expiresAtMs: BigInt(lease.expiresAtMs),
  });
}

async function* chunksOf(messages: AsyncIterator<UploadAssetRequest>): AsyncGenerator<Uint8Array> {
  for (let part = await nextPart(messages); part !== undefined; part = await nextPart(messages)) {
    if (part.case !== "chunk") throw new ServiceError("INVALID_REQUEST", "a second header arrived");
    yield part.value;
  }
}

async function nextPart(messages: AsyncIterator<UploadAssetRequest>): Promise<UploadAssetRequest["part"] | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new ServiceError("DEADLINE_EXCEEDED", `nothing arrived for ${uploadIdleMs} ms`)),
      uploadIdleMs,
    );
  });
  try {
    const { done, value } = await Promise.race([messages.next(), silence]);
    return done === true ? undefined : value.part;
  } finally {
    clearTimeout(timer);
  }
}
