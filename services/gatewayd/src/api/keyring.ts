import { type ApiKeyId, type Clock, ServiceError, type TenantId } from "@unkey/base";
import { BoundedMap } from "../bounded-map.ts";
import { bearerToken, digestOfSecret } from "../domain/api-key.ts";
import type { ApiKeyRow, KeyStore } from "../store/key-store.ts";

/** Another replica's revocation is noticed within this time; one made here, at once. */
const knownForMs = 1000;
/** A key that does not exist never will: new keys are random. The time only bounds memory. */
const unknownForMs = 60_000;
const maxRemembered = 10_000;

/** Recognises API keys. */
export class Keyring {
  readonly #store: KeyStore;
  readonly #clock: Clock;
  readonly #known = new BoundedMap<string, { readonly key: ApiKeyRow; readonly untilMs: number }>(maxRemembered);
  readonly #unknown = new BoundedMap<string, number>(maxRemembered);
  /** Keys with streams under way, which have to end with the key. */
  readonly #inUse = new Map<ApiKeyId, { readonly key: ApiKeyRow; readonly end: AbortController; streams: number }>();

  constructor(deps: { readonly store: KeyStore; readonly clock: Clock }) {
    this.#store = deps.store;
    this.#clock = deps.clock;
  }

  /** The key in an Authorization header. Throws UNAUTHENTICATED, saying what is wrong with it. */
  async identify(authorization: string | null): Promise<ApiKeyRow> {
    if (authorization === null) throw refused("the request carries no API key");
    const secret = bearerToken(authorization);
    const digest = secret === undefined ? undefined : digestOfSecret(secret);
    if (digest === undefined) throw refused("the Authorization header holds no API key of the form unkey_…");
    const name = Buffer.from(digest.sha256).toString("base64");
    const nowMs = this.#clock.nowMs();
    if ((this.#unknown.get(name) ?? 0) > nowMs) throw refused("the API key is not known");
    const known = this.#known.get(name);
    if (known && known.untilMs > nowMs) return this.#inForce(known.key);
    const key = await this.#store.find(digest);
    if (!key) {
      this.#unknown.set(name, nowMs + unknownForMs);
      throw refused("the API key is not known");
    }
    this.#known.set(name, { key, untilMs: nowMs + knownForMs });
    return this.#inForce(key);
  }

  /** Streams that the tenant's keys have under way. */
  streamsOf(tenantId: TenantId): number {
    let streams = 0;
    for (const entry of this.#inUse.values()) if (entry.key.tenantId === tenantId) streams += entry.streams;
    return streams;
  }

  /** A signal that ends with the key; dispose it when the stream that needs it is over. */
  whileInForce(key: ApiKeyRow): Disposable & { readonly signal: AbortSignal } {
    const { apiKeyId } = key;
    const entry = this.#inUse.get(apiKeyId) ?? { key, end: new AbortController(), streams: 0 };
    this.#inUse.set(apiKeyId, entry);
    entry.streams += 1;
    let disposed = false;
    return {
      signal: entry.end.signal,
      [Symbol.dispose]: () => {
        if (disposed) return;
        disposed = true;
        entry.streams -= 1;
        if (entry.streams === 0 && this.#inUse.get(apiKeyId) === entry) this.#inUse.delete(apiKeyId);
      },
    };
  }

  /** The key was revoked: nothing recognises it from now on, and its streams end. */
  forget(apiKeyId: ApiKeyId): void {
    this.#known.deleteWhere(({ key }) => key.apiKeyId === apiKeyId);
    this.#inUse.get(apiKeyId)?.end.abort(refused("the API key was revoked"));
    this.#inUse.delete(apiKeyId);
  }

  /** Ends streams of keys that expired or that another replica revoked. */
  async recheckInUse(): Promise<void> {
    for (const { key } of this.#inUse.values()) {
      const now = await this.#store.get(key.tenantId, key.apiKeyId);
      try {
        this.#inForce(now ?? { ...key, revokedAtMs: 1 });
      } catch (error) {
        this.#inUse.get(key.apiKeyId)?.end.abort(error);
        this.forget(key.apiKeyId);
      }
    }
  }

  #inForce(key: ApiKeyRow): ApiKeyRow {
    if (key.revokedAtMs > 0) throw refused("the API key was revoked");
    if (key.expiresAtMs > 0 && key.expiresAtMs <= this.#clock.nowMs()) throw refused("the API key has expired");
    return key;
  }
}

function refused(message: string): ServiceError {
  return new ServiceError("UNAUTHENTICATED", message, {
    nextStep: "Send a valid key in the header `Authorization: Bearer unkey_…`.",
  });
}
