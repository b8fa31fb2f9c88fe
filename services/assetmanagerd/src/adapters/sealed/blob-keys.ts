import { randomBytes } from "node:crypto";
import type { Digest, Owner } from "../../domain/asset.ts";
import type { KeyCatalog } from "../../ports.ts";
import { keyBytes, unwrapKey, wrapKey } from "./key-wrap.ts";
import type { TenantKeyRing } from "./tenant-key-ring.ts";

/**
 * A key per blob, under the key of the tenant that sent the blob first: equal bytes of two tenants are stored once, and who
 * may read them is the catalog's to say.
 */
export class BlobKeys {
  readonly #ring: TenantKeyRing;
  readonly #store: KeyCatalog;

  constructor(ring: TenantKeyRing, store: KeyCatalog) {
    this.#ring = ring;
    this.#store = store;
  }

  /** The blob's key, made for `owner` when there is none. */
  async keyFor(digest: Digest, owner: Owner): Promise<Uint8Array> {
    const wrapped = wrapKey(await this.#ring.keyOf(owner), digest, randomBytes(keyBytes));
    return this.#open(digest, await this.#store.addBlobKey(digest, { owner, wrapped }));
  }

  /** The blob's key; undefined when it has none. */
  async find(digest: Digest): Promise<Uint8Array | undefined> {
    const kept = await this.#store.blobKey(digest);
    return kept && this.#open(digest, kept);
  }

  async forget(digests: readonly Digest[]): Promise<void> {
    await this.#store.forgetBlobKeys(digests);
  }

  async #open(digest: Digest, { owner, wrapped }: { owner: Owner; wrapped: Uint8Array }): Promise<Uint8Array> {
    return unwrapKey(await this.#ring.keyOf(owner), digest, wrapped);
  }
}
