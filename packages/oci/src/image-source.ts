import { ServiceError } from "@unkey/base";
import { type Digest, shortDigest } from "./digest.ts";
import {
  type Descriptor,
  type Index,
  isConfigType,
  isIndexType,
  isLayerType,
  isManifestType,
  type Manifest,
  parseDocument,
} from "./documents.ts";
import { type ImageConfig, parseImageConfig } from "./image-config.ts";
import { InvalidInput, rethrowInvalid } from "./invalid-input.ts";
import { checkBytes, checkCount, type ImageLimits } from "./layer/limits.ts";
import { formatPlatform, type Platform, platformFits } from "./platform.ts";

/** A manifest or index as it was served; `digest` is that of `bytes`. */
export interface FetchedDocument {
  readonly bytes: Uint8Array;
  readonly digest: Digest;
  /** What the transport or the descriptor calls it. */
  readonly mediaType: string | undefined;
}

export interface FetchOptions {
  readonly signal: AbortSignal;
  /** Called with the bytes received so far. */
  readonly onBytes?: (bytes: number) => void;
}

/** One image in some place. Everything it returns has been checked against the digest that names it. */
export interface ImageSource {
  /** For messages. */
  readonly name: string;
  /** Host of the registry that it comes from; undefined for an upload. */
  readonly registry: string | undefined;
  /** What the image's name stands for, looked up now: a tag may stand for something else the next time. */
  root(signal: AbortSignal): Promise<FetchedDocument>;
  document(descriptor: Descriptor, signal: AbortSignal): Promise<FetchedDocument>;
  config(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array>;
  /**
   * The layer's bytes, checked while they flow: ends with IMAGE_DIGEST_MISMATCH unless they are the descriptor's, so nothing made from
   * them counts before the end. Broken transfers go on inside. Opened again after a mismatch, mirrors that were asked are passed over.
   */
  openLayer(descriptor: Descriptor, options: FetchOptions): AsyncIterable<Uint8Array>;
  /**
   * True when the image's own registry gives the blob to this caller, asked without reading it; of an upload, when it holds the
   * blob. A registry may say so of bytes that it never had: the answer proves access only to what came from that same
   * `registry` before, or from the caller's own upload.
   */
  canRead(descriptor: Descriptor, signal: AbortSignal): Promise<boolean>;
  /** Another tag of the same repository, with the same login; undefined for an upload. */
  related(tag: string): ImageSource | undefined;
}

/** An image down to what names its content; no layer has been fetched. */
export interface ResolvedImage {
  /** Digest of the platform's own manifest, whatever index led to it. */
  readonly manifestDigest: Digest;
  readonly config: ImageConfig;
  /** Lowest first. */
  readonly layers: readonly { readonly descriptor: Descriptor; readonly diffId: Digest }[];
  /** Sum of the layers as they travel. */
  readonly layerBytes: number;
}

/** A resolved manifest before its config is read: enough to look for an earlier build. */
export interface ResolvedManifest {
  readonly digest: Digest;
  readonly manifest: Manifest;
}

/** An index in an index happens (a tag of tags); more levels do not. */
const maxIndexDepth = 3;

/**
 * Follows the image's name to the manifest for `platform`. Throws IMAGE_PLATFORM_UNAVAILABLE with the platforms on offer,
 * IMAGE_UNSUPPORTED, IMAGE_MANIFEST_INVALID, or what the source throws.
 */
export async function resolveManifest(
  source: ImageSource,
  platform: Platform,
  signal: AbortSignal,
): Promise<ResolvedManifest> {
  let fetched = await source.root(signal);
  for (let depth = 0; depth < maxIndexDepth; depth++) {
    const document = read(source, fetched);
    if (document.kind === "manifest") return { digest: fetched.digest, manifest: document };
    fetched = await source.document(choose(source, document, platform), signal);
  }
  throw new ServiceError("IMAGE_MANIFEST_INVALID", `${source.name} nests indexes deeper than ${maxIndexDepth}`);
}

/** Reads the config and checks that manifest, config, platform and limits agree. Throws as `resolveManifest` does. */
export async function resolveImage(
  source: ImageSource,
  { digest, manifest }: ResolvedManifest,
  platform: Platform,
  limits: ImageLimits,
  signal: AbortSignal,
): Promise<ResolvedImage> {
  if (!isConfigType(manifest.config.mediaType)) {
    throw new ServiceError(
      "IMAGE_UNSUPPORTED",
      `${source.name} is not a container image: its config is of type ${JSON.stringify(manifest.config.mediaType.slice(0, 100))}`,
    );
  }
  const unsupported = manifest.layers.find((layer) => !isLayerType(layer.mediaType));
  if (unsupported !== undefined) {
    throw new ServiceError(
      "IMAGE_UNSUPPORTED",
      `${source.name} has a layer of type ${JSON.stringify(unsupported.mediaType.slice(0, 100))}`,
    );
  }
  checkCount("the image's layers are", manifest.layers.length, limits.layers);
  const layerBytes = manifest.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
  checkBytes("the image's layers are", layerBytes, limits.compressedBytes);

  const bytes = await source.config(manifest.config, signal);
  try {
    const config = parseImageConfig(bytes);
    if (!platformFits(config.platform, platform)) {
      throw new ServiceError(
        "IMAGE_PLATFORM_UNAVAILABLE",
        `${source.name} is for ${formatPlatform(config.platform)}; this platform runs ${formatPlatform(platform)}`,
        { metadata: { offered: formatPlatform(config.platform), wanted: formatPlatform(platform) } },
      );
    }
    if (config.diffIds.length !== manifest.layers.length) {
      throw new InvalidInput(`it has ${manifest.layers.length} layers but its config lists ${config.diffIds.length}`);
    }
    const diffIds = new Map<Digest, Digest>();
    const layers = manifest.layers.map((descriptor, index) => {
      const diffId = config.diffIds[index];
      if (diffId === undefined) throw new InvalidInput("its config lists too few layers");
      // What is unpacked once stands for each time that the image names it: two claims about it would pass for damage of ours.
      if ((diffIds.get(descriptor.digest) ?? diffId) !== diffId) {
        throw new InvalidInput(`its config says two things about the layer ${shortDigest(descriptor.digest)}`);
      }
      diffIds.set(descriptor.digest, diffId);
      return { descriptor, diffId };
    });
    return { manifestDigest: digest, config, layers, layerBytes };
  } catch (error) {
    rethrowInvalid(error, "IMAGE_MANIFEST_INVALID", source.name);
  }
}

function read(source: ImageSource, fetched: FetchedDocument): Manifest | Index {
  try {
    return parseDocument(fetched.bytes, fetched.mediaType);
  } catch (error) {
    rethrowInvalid(error, "IMAGE_MANIFEST_INVALID", `${source.name} (${shortDigest(fetched.digest)})`);
  }
}

/** The member of an index for a platform. A single member that says no platform is taken: its config is checked later. */
function choose(source: ImageSource, index: Index, platform: Platform): Descriptor {
  const images = index.manifests.filter(
    ({ mediaType, platform: offered }) =>
      (isManifestType(mediaType) || isIndexType(mediaType)) && offered?.os !== "unknown", // build attestations
  );
  const fitting = images.find((image) => image.platform !== undefined && platformFits(image.platform, platform));
  if (fitting !== undefined) return fitting;
  const [only, ...others] = images;
  if (only !== undefined && only.platform === undefined && others.length === 0) return only;
  const offered = images.map((image) => (image.platform === undefined ? "unnamed" : formatPlatform(image.platform)));
  const list = offered.length === 0 ? "nothing" : [...new Set(offered)].slice(0, 32).join(", ");
  throw new ServiceError(
    "IMAGE_PLATFORM_UNAVAILABLE",
    `${source.name} offers ${list}; this platform runs ${formatPlatform(platform)}`,
    { metadata: { offered: list, wanted: formatPlatform(platform) } },
  );
}
