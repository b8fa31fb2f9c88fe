import { randomBytes } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { ServiceError } from "@unkey/base";
import type { Owner } from "../../domain/asset.ts";
import { keyBytes, unwrapKey, wrapKey } from "./key-wrap.ts";

/** Keeps the wrapped keys. */
export interface WrappedKeyStore {
  /** The owner's wrapped key: `fresh`, unless there was one. Durable before it is answered. */
  wrappedKey(owner: Owner, fresh: Uint8Array): Promise<Uint8Array>;
}

/**
 * A data key per tenant, random, wrapped by the operator's key (AES-256-GCM, the tenant's id authenticated). Without the
 * wrapped key, which lies in the service's database, and the operator's, which does not, nothing of a tenant can be read.
 */
export class TenantKeyRing {
  readonly #master: Uint8Array;
  readonly #store: WrappedKeyStore;
  readonly #keys = new Map<Owner, Buffer>();

  constructor(master: Uint8Array, store: WrappedKeyStore) {
    if (master.length !== keyBytes) throw new RangeError("the operator's key has 32 bytes");
    this.#master = master;
    this.#store = store;
  }

  /** The tenant's key, made when there is none. Throws BLOB_KEY_INVALID when the operator's key is not that of the store. */
  async keyOf(owner: Owner): Promise<Uint8Array> {
    const known = this.#keys.get(owner);
    if (known !== undefined) return known;
    const wrapped = await this.#store.wrappedKey(owner, wrapKey(this.#master, owner, randomBytes(keyBytes)));
    const key = unwrapKey(this.#master, owner, wrapped);
    this.#keys.set(owner, key);
    return key;
  }
}

/** Reads the operator's key: 32 bytes in base64, in a file that nobody else can read. Throws BLOB_KEY_INVALID. */
export async function readMasterKey(path: string): Promise<Uint8Array> {
  const { mode } = await stat(path).catch((cause: unknown) => {
    throw new ServiceError("BLOB_KEY_INVALID", `the blob key ${path} cannot be read`, { cause });
  });
  if ((mode & 0o077) !== 0) throw new ServiceError("BLOB_KEY_INVALID", `others can read the blob key ${path}`);
  const text = (await readFile(path, "utf8")).trim();
  const key = Buffer.from(text, "base64");
  if (key.length !== keyBytes || key.toString("base64") !== text) {
    throw new ServiceError("BLOB_KEY_INVALID", `the blob key ${path} is not 32 bytes in base64`);
  }
  return key;
}
