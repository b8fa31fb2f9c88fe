import { create } from "@bufbuild/protobuf";
import {
  type Asset as AssetMessage,
  AssetSchema,
  type BeginUploadRequest,
  AssetKind as KindMessage,
  type Lease as LeaseMessage,
  LeaseSchema,
  type ListAssetsRequest,
  StagingMethod as MethodMessage,
  AssetState as StateMessage,
  type UploadHeader,
} from "@unkey/api/asset";
import { type AssetId, type LeaseId, parseId, ServiceError } from "@unkey/base";
import {
  type Asset,
  type AssetDeclaration,
  type AssetDescription,
  type AssetKind,
  type Digest,
  type Lease,
  type Owner,
  parseDigest,
} from "./domain/asset.ts";
import type { AssetState } from "./domain/asset-states.ts";
import type { AssetQuery, StagingMethod } from "./ports.ts";

const defaultPageSize = 100;

const kindMessages: Readonly<Record<AssetKind, KindMessage>> = {
  kernel: KindMessage.KERNEL,
  initrd: KindMessage.INITRD,
  rootfs: KindMessage.ROOTFS,
  disk_image: KindMessage.DISK_IMAGE,
  snapshot: KindMessage.SNAPSHOT,
  provenance: KindMessage.PROVENANCE,
  sbom: KindMessage.SBOM,
  image_blob: KindMessage.IMAGE_BLOB,
  layer: KindMessage.LAYER,
};

const stateMessages: Readonly<Record<AssetState, StateMessage>> = {
  uploading: StateMessage.UPLOADING,
  available: StateMessage.AVAILABLE,
  deleting: StateMessage.DELETING,
  error: StateMessage.ERROR,
  removed: StateMessage.UNSPECIFIED, // nobody is ever shown one
};

export const methodMessages: Readonly<Record<StagingMethod, MethodMessage>> = {
  hard_link: MethodMessage.HARD_LINK,
  reflink: MethodMessage.REFLINK,
  copy: MethodMessage.COPY,
};

/** Empty stands for the platform: the service that calls speaks for itself, which the rpc layer has checked. */
export function toOwner(tenantId: string): Owner {
  return tenantId === "" ? "" : parseId("tenant", tenantId, "tenant_id");
}

export const toAssetId = (text: string): AssetId => parseId("asset", text, "asset_id");
export const toPartIds = (texts: readonly string[]): AssetId[] =>
  texts.map((text) => parseId("asset", text, "part_ids"));
export const toLeaseId = (text: string): LeaseId => parseId("lease", text, "lease_id");

/** Lengths and durations; the contract keeps durations small, and no store holds 2^53 bytes. */
export function toNumber(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new ServiceError("INVALID_REQUEST", `${value} is too large`);
  return Number(value);
}

function toKind(message: KindMessage): AssetKind | undefined {
  return (Object.keys(kindMessages) as AssetKind[]).find((kind) => kindMessages[kind] === message);
}

export function toDigest(text: string): Digest {
  const digest = parseDigest(text);
  if (digest === undefined) throw new ServiceError("INVALID_REQUEST", "digest: is not sha256:<64 hex digits>");
  return digest;
}

export function toDescription(
  message: Pick<BeginUploadRequest, "tenantId" | "name" | "kind" | "labels" | "attachedTo" | "keep">,
): AssetDescription {
  const { tenantId, name, labels, attachedTo, keep } = message;
  const kind = toKind(message.kind);
  if (kind === undefined) throw new ServiceError("INVALID_REQUEST", "kind: is required");
  for (const [label, value] of Object.entries(labels)) {
    if (label.length === 0 || label.length > 128 || value.length > 1024) {
      throw new ServiceError("INVALID_REQUEST", "labels: a name has 1 to 128 characters, a value at most 1024");
    }
  }
  return {
    owner: toOwner(tenantId),
    name,
    kind,
    labels,
    keep,
    attachedTo: attachedTo === "" ? undefined : parseId("asset", attachedTo, "attached_to"),
  };
}

export function toDeclaration(header: UploadHeader): AssetDeclaration {
  return { ...toDescription(header), digest: toDigest(header.digest), sizeBytes: toNumber(header.sizeBytes) };
}

export function toQuery(request: ListAssetsRequest): AssetQuery {
  const kind = toKind(request.kind);
  if (kind === undefined && request.kind !== KindMessage.UNSPECIFIED) {
    throw new ServiceError("INVALID_REQUEST", `kind: ${request.kind} is unknown`);
  }
  if (request.version !== 0 && request.name === "") {
    throw new ServiceError("INVALID_REQUEST", "version: needs a name");
  }
  return {
    viewer: toOwner(request.tenantId),
    ...(request.name === "" ? {} : { name: request.name }),
    ...(request.version === 0 ? {} : { version: request.version }),
    ...(request.digest === "" ? {} : { digest: toDigest(request.digest) }),
    ...(request.attachedTo === "" ? {} : { attachedTo: parseId("asset", request.attachedTo, "attached_to") }),
    ...(kind === undefined ? {} : { kind }),
    labels: request.labels,
    limit: request.pageSize === 0 ? defaultPageSize : request.pageSize,
    ...(request.pageToken === "" ? {} : { before: parseId("asset", request.pageToken, "page_token") }),
  };
}

export function toAsset(asset: Asset): AssetMessage {
  return create(AssetSchema, {
    assetId: asset.id,
    tenantId: asset.owner,
    name: asset.name,
    kind: kindMessages[asset.kind],
    state: stateMessages[asset.state],
    digest: asset.digest ?? "",
    sizeBytes: BigInt(asset.sizeBytes),
    labels: asset.labels,
    createdAtMs: BigInt(asset.createdAtMs),
    lastUsedAtMs: BigInt(asset.lastUsedAtMs),
    leaseCount: asset.leaseCount,
    version: asset.version,
    attachedTo: asset.attachedTo ?? "",
    keep: asset.keep,
    receivedBytes: BigInt(asset.receivedBytes),
    parts: asset.parts.map((part) => ({
      assetId: part.id,
      digest: part.digest,
      sizeBytes: BigInt(part.sizeBytes),
      state: stateMessages[part.state],
    })),
  });
}

export function toLease(lease: Lease): LeaseMessage {
  return create(LeaseSchema, {
    leaseId: lease.id,
    tenantId: lease.tenantId,
    leaseKey: lease.key,
    assetIds: [...lease.assetIds],
    expiresAtMs: BigInt(lease.expiresAtMs),
  });
}
