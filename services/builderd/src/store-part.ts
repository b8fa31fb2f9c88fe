import { stat } from "node:fs/promises";
import type { AssetId, TenantId } from "@unkey/base";
import type { LayerCache, LayerKey } from "./layer-cache/layer-cache.ts";
import type { AssetRegistry } from "./ports.ts";

/** The content of a layer as an asset of its own. */
export interface StoredPart {
  readonly assetId: AssetId;
  readonly digest: string;
  readonly sizeBytes: number;
}

export interface StorePartDeps {
  readonly assets: AssetRegistry;
  readonly cache: LayerCache;
  readonly tenantId: TenantId;
  /** Names the uploads: the same for every try. */
  readonly buildId: string;
  readonly signal: AbortSignal;
}

/** Stores the content of a layer that lies at `path`, unless the tenant has it already. Throws what storing throws. */
export async function storePart(
  layer: LayerKey,
  path: string,
  { assets, cache, tenantId, buildId, signal }: StorePartDeps,
): Promise<StoredPart> {
  const { size: sizeBytes } = await stat(path);
  const knownDigest = await cache.contentDigest(layer);
  const uploadKey = `${layer.digest} of ${buildId}`;
  const file = { tenantId, uploadKey, name: layer.digest, path, sizeBytes, knownDigest };
  const { assetId, digest } = await assets.storeLayer(file, signal);
  if (digest !== knownDigest) await cache.noteContentDigest(layer, digest);
  return { assetId, digest, sizeBytes };
}
