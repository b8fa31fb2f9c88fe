import { type Digest, parseDigest } from "./digest.ts";
import { InvalidInput } from "./invalid-input.ts";
import {
  asObject,
  type JsonObject,
  optionalArray,
  optionalObject,
  optionalString,
  parseJsonObject,
  requiredSize,
} from "./json.ts";
import type { Platform } from "./platform.ts";

/*
 * Manifests and indexes: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md and image-index.md, and
 * Docker's image manifest version 2 schema 2, which has the same shape under other media types.
 */

export const ociManifestType = "application/vnd.oci.image.manifest.v1+json";
export const ociIndexType = "application/vnd.oci.image.index.v1+json";
export const ociConfigType = "application/vnd.oci.image.config.v1+json";
export const ociLayerType = "application/vnd.oci.image.layer.v1.tar";
const dockerManifestType = "application/vnd.docker.distribution.manifest.v2+json";
const dockerIndexType = "application/vnd.docker.distribution.manifest.list.v2+json";
const dockerConfigType = "application/vnd.docker.container.image.v1+json";

/** What a registry is told we read, in the order of preference. */
export const acceptedManifestTypes = [ociIndexType, ociManifestType, dockerIndexType, dockerManifestType];

const layerTypes = new Set([
  ociLayerType,
  `${ociLayerType}+gzip`,
  `${ociLayerType}+zstd`,
  "application/vnd.oci.image.layer.nondistributable.v1.tar",
  "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
  "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
  "application/vnd.docker.image.rootfs.diff.tar",
  "application/vnd.docker.image.rootfs.diff.tar.gzip",
  "application/vnd.docker.image.rootfs.diff.tar.zstd",
]);

/** Far above any real document; the distribution specification has registries accept at least 4 MiB. */
export const maxManifestBytes = 4 * 1024 * 1024;
const maxDescriptors = 1024;

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
  /** Only in an index. */
  readonly platform: Platform | undefined;
  readonly annotations: Readonly<Record<string, string>>;
}

export interface Manifest {
  readonly kind: "manifest";
  readonly mediaType: string;
  readonly config: Descriptor;
  /** Lowest first. */
  readonly layers: readonly Descriptor[];
}

export interface Index {
  readonly kind: "index";
  readonly mediaType: string;
  readonly manifests: readonly Descriptor[];
}

/**
 * Reads a manifest or an index. `declaredType` is the media type that the transport or descriptor gave; the document's
 * own `mediaType` may be absent but not contradict it. Throws InvalidInput.
 */
export function parseDocument(bytes: Uint8Array, declaredType: string | undefined): Manifest | Index {
  const json = parseJsonObject(bytes, "the manifest");
  const ownType = optionalString(json, "mediaType");
  const transportType = declaredType !== undefined && isDocumentType(declaredType) ? declaredType : undefined;
  if (ownType !== undefined && transportType !== undefined && ownType !== transportType) {
    throw new InvalidInput(`the manifest says it is ${short(ownType)} but was sent as ${short(transportType)}`);
  }
  if (json["schemaVersion"] === 1) throw new InvalidInput("it is in Docker's schema 1, which no current tool writes");
  if (json["schemaVersion"] !== 2) throw new InvalidInput("schemaVersion is not 2");
  // A document that is both would be read one way here and another way by the next tool.
  if ("manifests" in json && ("layers" in json || "config" in json)) {
    throw new InvalidInput("the manifest is an index and an image at once");
  }
  const mediaType = ownType ?? transportType ?? ("manifests" in json ? ociIndexType : ociManifestType);
  if (mediaType === ociIndexType || mediaType === dockerIndexType) {
    const manifests = descriptors(json, "manifests");
    return { kind: "index", mediaType, manifests };
  }
  if (mediaType !== ociManifestType && mediaType !== dockerManifestType) {
    throw new InvalidInput(`${short(mediaType)} is not an image manifest`);
  }
  const config = parseDescriptor(asObject(json["config"], "config"));
  return { kind: "manifest", mediaType, config, layers: descriptors(json, "layers") };
}

export function isIndexType(mediaType: string): boolean {
  return mediaType === ociIndexType || mediaType === dockerIndexType;
}

export function isManifestType(mediaType: string): boolean {
  return mediaType === ociManifestType || mediaType === dockerManifestType;
}

export function isLayerType(mediaType: string): boolean {
  return layerTypes.has(mediaType);
}

export function isConfigType(mediaType: string): boolean {
  return mediaType === ociConfigType || mediaType === dockerConfigType;
}

function isDocumentType(mediaType: string): boolean {
  return isIndexType(mediaType) || isManifestType(mediaType);
}

function descriptors(json: JsonObject, field: string): Descriptor[] {
  const list = optionalArray(json, field);
  if (list === undefined) throw new InvalidInput(`${field} is missing`);
  if (list.length > maxDescriptors) throw new InvalidInput(`${field} has over ${maxDescriptors} members`);
  return list.map((item) => parseDescriptor(asObject(item, field)));
}

function parseDescriptor(json: JsonObject): Descriptor {
  const platform = optionalObject(json, "platform");
  const annotations: Record<string, string> = {};
  for (const [key, value] of Object.entries(optionalObject(json, "annotations") ?? {})) {
    if (typeof value === "string") annotations[key] = value;
  }
  return {
    mediaType: optionalString(json, "mediaType") ?? "",
    digest: parseDigest(optionalString(json, "digest") ?? ""),
    sizeBytes: requiredSize(json, "size"),
    platform: platform && {
      os: optionalString(platform, "os") ?? "",
      architecture: optionalString(platform, "architecture") ?? "",
      variant: optionalString(platform, "variant") ?? "",
    },
    annotations,
  };
}

function short(mediaType: string): string {
  return JSON.stringify(mediaType.slice(0, 100));
}
