import { type AssetId, type Clock, isServiceError, ServiceError } from "@unkey/base";
import type { Asset, AssetDeclaration, Owner, Quota } from "./domain/asset.ts";
import type { AssetCatalog, AssetQuery, Usage } from "./ports.ts";
import type { StoredBlobs } from "./stored-blobs.ts";

export interface AssetsDeps {
  readonly assets: AssetCatalog;
  readonly stored: StoredBlobs;
  readonly clock: Clock;
  readonly quotaOf: (owner: Owner) => Quota;
}

/** Looking assets up, naming them, reading them, giving them up. */
export class Assets {
  readonly #deps: AssetsDeps;

  constructor(deps: AssetsDeps) {
    this.#deps = deps;
  }

  /** Another asset of content that the owner already has. */
  async register(declaration: AssetDeclaration): Promise<Asset> {
    const { assets, stored, clock, quotaOf } = this.#deps;
    const { owner, digest } = declaration;
    return stored.lock.run(digest, async () => {
      // Knowing a digest is not having the bytes: a tenant must not get at another's content by naming it.
      const sizeBytes = await assets.ownedSize(owner, digest);
      if (sizeBytes === undefined) throw new ServiceError("ASSET_NOT_FOUND", `the tenant owns no asset of ${digest}`);
      if (sizeBytes !== declaration.sizeBytes) {
        throw new ServiceError("ASSET_SIZE_MISMATCH", `${digest} is ${sizeBytes} bytes long`);
      }
      return assets.add(declaration, quotaOf(owner), clock.nowMs());
    });
  }

  async get(viewer: Owner, id: AssetId): Promise<Asset> {
    const asset = await this.#deps.assets.find(viewer, id, this.#deps.clock.nowMs());
    if (asset === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${id}`);
    return asset;
  }

  list(query: AssetQuery): Promise<Asset[]> {
    return this.#deps.assets.list(query, this.#deps.clock.nowMs());
  }

  async *download(viewer: Owner, id: AssetId, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const { state, digest, sizeBytes } = await this.get(viewer, id);
    if (digest === undefined || state === "error") {
      throw new ServiceError("ASSET_NOT_AVAILABLE", `asset ${id} is in state ${state}`);
    }
    if (offset > sizeBytes) {
      throw new ServiceError("INVALID_REQUEST", `offset: ${offset} lies beyond the end at ${sizeBytes}`);
    }
    try {
      yield* this.#deps.stored.read(digest, offset, signal);
    } catch (error) {
      if (isServiceError(error, "ASSET_CORRUPT")) await this.get(viewer, id); // it may have been swept meanwhile
      throw error;
    }
  }

  giveUp(owner: Owner, id: AssetId): Promise<Asset> {
    return this.#deps.assets.giveUp(owner, id, this.#deps.clock.nowMs());
  }

  async usage(owner: Owner): Promise<Usage & { readonly quota: Quota }> {
    return { ...(await this.#deps.assets.usage(owner)), quota: this.#deps.quotaOf(owner) };
  }
}
