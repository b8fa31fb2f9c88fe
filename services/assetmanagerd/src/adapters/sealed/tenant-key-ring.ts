import { randomBytes } from "node:crypto";
import { ServiceError } from "@unkey/base";
import type { Owner } from "../../domain/asset.ts";
import type { KeyCatalog } from "../../ports.ts";
import { keyBytes, unwrapKey, wrapKey } from "./key-wrap.ts";

/**
 * A data key per tenant, random, wrapped by the operator's key (AES-256-GCM, the tenant's id authenticated). Without the
 * wrapped key, which lies in the service's database, and the operator's, which does not, nothing of a tenant can be read.
 */
export class TenantKeyRing {
  readonly #master: Uint8Array;
  readonly #store: Pick<KeyCatalog, "tenantKey">;
  readonly #keys = new Map<Owner, Buffer>();

  constructor(master: Uint8Array, store: Pick<KeyCatalog, "tenantKey">) {
    if (master.length !== keyBytes) throw new RangeError("the operator's key has 32 bytes");
    this.#master = master;
    this.#store = store;
  }

  /** The tenant's key, made when there is none. Throws BLOB_KEY_INVALID when the operator's key is not that of the store. */
  async keyOf(owner: Owner): Promise<Uint8Array> {
    const known = this.#keys.get(owner);
    if (known !== undefined) return known;
    const wrapped = await this.#store.tenantKey(owner, wrapKey(this.#master, owner, randomBytes(keyBytes)));
    const key = unwrapKey(this.#master, owner, wrapped);
    this.#keys.set(owner, key);
    return key;
  }
}

/** The operator's key from its text: 32 bytes in base64. Throws BLOB_KEY_INVALID. */
export function parseMasterKey(text: string): Uint8Array {
  const key = Buffer.from(text, "base64");
  if (key.length !== keyBytes || key.toString("base64") !== text) {
    throw new ServiceError("BLOB_KEY_INVALID", "the blob key is not 32 bytes in base64");
  }
  return key;
}
