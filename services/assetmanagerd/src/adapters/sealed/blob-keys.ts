import { randomBytes } from "node:crypto";
import type { Digest, Owner } from "../../domain/asset.ts";
import { keyBytes, unwrapKey, wrapKey } from "./key-wrap.ts";
import type { TenantKeyRing } from "./tenant-key-ring.ts";

export interface WrappedBlobKey {
  readonly owner: Owner;
  readonly wrapped: Uint8Array;
}

/** Keeps blobs' wrapped keys. */
export interface BlobKeyStore {
  /** Every owner's copy. */
  copies(digest: Digest): Promise<readonly WrappedBlobKey[]>;
  /** Adds an owner's copy, durably, unless the owner has one. */
  add(digest: Digest, copy: WrappedBlobKey): Promise<void>;
  forget(digests: readonly Digest[]): Promise<void>;
}

/**
 * A key per blob, with a copy under the key of each tenant that owns the blob: equal bytes of two tenants are stored once, and
 * no tenant's key opens what is another's alone.
 */
export class BlobKeys {
  readonly #ring: TenantKeyRing;
  readonly #store: BlobKeyStore;

  constructor(ring: TenantKeyRing, store: BlobKeyStore) {
    this.#ring = ring;
    this.#store = store;
  }

  /** The blob's key, made when there is none; the owner has a copy afterwards. */
  async keyFor(digest: Digest, owner: Owner): Promise<Uint8Array> {
    const known = await this.find(digest);
    const key = known ?? randomBytes(keyBytes);
    const tenantKey = await this.#ring.keyOf(owner);
    await this.#store.add(digest, { owner, wrapped: wrapKey(tenantKey, digest, key) });
    // Another upload of the same bytes may have been first: what is kept counts.
    return (await this.find(digest)) ?? key;
  }

  /** The blob's key; undefined when it has none. Throws BLOB_KEY_INVALID when no copy opens. */
  async find(digest: Digest): Promise<Uint8Array | undefined> {
    const [copy] = await this.#store.copies(digest);
    return copy && unwrapKey(await this.#ring.keyOf(copy.owner), digest, copy.wrapped);
  }

  async forget(digests: readonly Digest[]): Promise<void> {
    await this.#store.forget(digests);
  }
}
