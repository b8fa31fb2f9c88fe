import { ServiceError } from "@unkey/base";
import { isForeignDigest, isSha256, type Sha256 } from "./digest.ts";

/*
 * Manifests and indexes as the registry has to understand them: what they refer to, and what a list of referrers says of
 * them (https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md and image-index.md). Everything else in a
 * document is its owner's business and is kept byte for byte.
 */

export const ociManifestType = "application/vnd.oci.image.manifest.v1+json";
export const ociIndexType = "application/vnd.oci.image.index.v1+json";
const dockerManifestType = "application/vnd.docker.distribution.manifest.v2+json";
const dockerIndexType = "application/vnd.docker.distribution.manifest.list.v2+json";
const manifestTypes: readonly string[] = [ociManifestType, dockerManifestType];
const indexTypes: readonly string[] = [ociIndexType, dockerIndexType];

/** The distribution specification wants 4 MiB to be accepted. */
export const maxManifestBytes = 4 * 1024 * 1024;
const maxReferences = 1000;
/** RFC 6838, section 4.2: two names of at most 127 characters. */
const maxMediaTypeLength = 255;

export interface ManifestDocument {
  readonly mediaType: string;
  /** Of an image: its config and layers, without those that live elsewhere by their own declaration. */
  readonly blobs: readonly Sha256[];
  /** Of an index: its members. */
  readonly manifests: readonly Sha256[];
  /** Empty when it has none. */
  readonly subject: string;
  /** What it says or, for an image that does not, its config's media type; may be empty. */
  readonly artifactType: string;
  readonly annotations: Readonly<Record<string, string>>;
}

type Json = Readonly<Record<string, unknown>>;

/** Throws MANIFEST_INVALID, saying what is wrong with it. `contentType` is the header's, without parameters. */
export function parseManifest(bytes: Uint8Array, contentType: string): ManifestDocument {
  const json = objectOf(readJson(bytes), "it");
  if (json["schemaVersion"] === 1) throw invalid("it is in Docker's schema 1, which no current tool writes");
  if (json["schemaVersion"] !== 2) throw invalid("schemaVersion is not 2");
  const own = text(json, "mediaType");
  if (own !== "" && contentType !== "" && own !== contentType) {
    throw invalid(`it says that it is ${shown(own)} but was sent as ${shown(contentType)}`);
  }
  const mediaType = own || contentType;
  const isIndex = indexTypes.includes(mediaType);
  if (!isIndex && !manifestTypes.includes(mediaType)) {
    throw invalid(`${shown(mediaType)} is neither an image manifest nor an index`);
  }
  // A document that is both would be read one way here and another way by the next tool.
  const both = isIndex ? "layers" in json || "config" in json : "manifests" in json;
  if (both) throw invalid("it is an index and an image at once");

  const annotations = annotationsOf(json);
  const subject = "subject" in json ? digestOf(objectOf(json["subject"], "subject"), "subject") : "";
  const artifactType = mediaTypeOf(json, "artifactType");
  if (isIndex) {
    const manifests = list(json, "manifests").map((member) => digestOf(member, "manifests"));
    return { mediaType, blobs: [], manifests: unique(manifests), subject, artifactType, annotations };
  }
  const config = objectOf(json["config"], "config");
  const layers = list(json, "layers").filter((layer) => !livesElsewhere(layer));
  return {
    mediaType,
    blobs: unique([digestOf(config, "config"), ...layers.map((layer) => digestOf(layer, "layers"))]),
    manifests: [],
    subject,
    artifactType: artifactType || mediaTypeOf(config, "mediaType"),
    annotations,
  };
}

/** Layers that may not be distributed name where they are instead of being pushed (image-spec layer.md). */
function livesElsewhere(layer: Json): boolean {
  const type = text(layer, "mediaType");
  const foreign = type.includes(".nondistributable.") || type.includes(".rootfs.foreign.");
  return foreign && Array.isArray(layer["urls"]) && layer["urls"].length > 0;
}

function readJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new ServiceError("MANIFEST_INVALID", "the manifest is not JSON in UTF-8", { cause });
  }
}

function list(json: Json, field: string): Json[] {
  const value = json[field];
  if (!Array.isArray(value)) throw invalid(`${field} is not a list`);
  if (value.length > maxReferences) throw invalid(`${field} has over ${maxReferences} members`);
  return value.map((member) => objectOf(member, field));
}

function digestOf(descriptor: Json, field: string): Sha256 {
  const digest = text(descriptor, "digest");
  if (isSha256(digest)) return digest;
  throw invalid(
    isForeignDigest(digest)
      ? `${field} refers to ${shown(digest)}, but only sha256 digests are stored here`
      : `${field} has a descriptor without a digest of the form sha256:<64 hex digits>`,
  );
}

function annotationsOf(json: Json): Record<string, string> {
  if (json["annotations"] === undefined) return {};
  const entries = Object.entries(objectOf(json["annotations"], "annotations"));
  return Object.fromEntries(
    entries.map(([name, value]) => {
      if (typeof value !== "string") throw invalid(`the annotation ${shown(name)} is not a text`);
      return [name, value];
    }),
  );
}

function objectOf(value: unknown, field: string): Json {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Json;
  throw invalid(`${field} is not an object`);
}

function text(json: Json, field: string): string {
  const value = json[field];
  if (value === undefined) return "";
  if (typeof value === "string") return value;
  throw invalid(`${field} is not a text`);
}

function mediaTypeOf(json: Json, field: string): string {
  const value = text(json, field);
  if (value.length <= maxMediaTypeLength) return value;
  throw invalid(`${field} has over ${maxMediaTypeLength} characters`);
}

function unique(digests: readonly Sha256[]): Sha256[] {
  return [...new Set(digests)];
}

function shown(value: string): string {
  return JSON.stringify(value.slice(0, 100));
}

function invalid(what: string): ServiceError {
  return new ServiceError("MANIFEST_INVALID", `the manifest cannot be taken: ${what}`);
}
