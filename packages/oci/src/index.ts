export { type Digest, digestOf, isDigest, parseDigest, StreamingDigest, shortDigest } from "./digest.ts";
export type { Descriptor } from "./documents.ts";
export type { ImageConfig } from "./image-config.ts";
export {
  type FetchedDocument,
  type FetchOptions,
  type ImageSource,
  type ResolvedImage,
  type ResolvedManifest,
  resolveImage,
  resolveManifest,
} from "./image-source.ts";
export { type NumericUser, resolveUser } from "./image-user.ts";
export { defaultImageLimits, type ImageLimits } from "./layer/limits.ts";
export { type AssembleOptions, assembleImage, type ImageFile, type ImageRunConfig } from "./layout/assemble-image.ts";
export { exportLayoutArchive } from "./layout/export-archive.ts";
export { importLayoutArchive } from "./layout/import-archive.ts";
export { LayoutImage } from "./layout/layout-image.ts";
export { formatPlatform, hostPlatform, type Platform } from "./platform.ts";
export { formatImageReference, type ImageReference, parseImageReference } from "./reference.ts";
export { credentialsFor } from "./registry/credentials.ts";
export {
  type ImageOptions,
  RegistryClient,
  type RegistryClientOptions,
  type RegistryMirror,
} from "./registry/registry-client.ts";
export type { OnRetry } from "./registry/retry.ts";
export type { RegistryCredentials } from "./registry/token.ts";
export { streamLayers } from "./stream-layers.ts";
export { collectVerified, verified } from "./verified.ts";
