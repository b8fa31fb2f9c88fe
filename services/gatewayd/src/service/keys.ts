import { type ApiKeyId, type Clock, newId, parseId, type RandomBytes, ServiceError, type TenantId } from "@unkey/base";
import type { Keyring } from "../api/keyring.ts";
import { digestOfSecret, newApiKeySecret } from "../domain/api-key.ts";
import { isKnownScope, scopeAllows } from "../domain/scopes.ts";
import type { ApiKeyRow, KeyStore } from "../store/key-store.ts";

export interface KeyServiceDeps {
  readonly store: KeyStore;
  readonly keyring: Keyring;
  readonly clock: Clock;
  readonly random: RandomBytes;
  /** Every scope that a method of the public API asks for. */
  readonly knownScopes: ReadonlySet<string>;
}

/** Each key has a rate of its own; all of them fit on the list that tells what may be revoked. */
const maxInForce = 500;

/** API keys of a tenant. */
export class KeyService {
  readonly #deps: KeyServiceDeps;

  constructor(deps: KeyServiceDeps) {
    this.#deps = deps;
  }

  /** A new key with its secret. It may do no more than the asking key, and not for longer. */
  async create(
    tenantId: TenantId,
    request: { readonly name: string; readonly scopes: readonly string[]; readonly expiresAtMs: bigint },
    asking: { readonly apiKeyId: string; readonly scopes: readonly string[] },
  ): Promise<{ readonly key: ApiKeyRow; readonly secret: string }> {
    const { store, clock, knownScopes } = this.#deps;
    const nowMs = clock.nowMs();
    for (const scope of request.scopes) {
      if (!isKnownScope(scope, knownScopes)) {
        const list = [...knownScopes].toSorted().join(", ");
        throw new ServiceError(
          "SCOPE_UNKNOWN",
          `there is no scope ${JSON.stringify(scope.slice(0, 64))}; there are ${list}`,
        );
      }
      if (!scopeAllows(asking.scopes, scope)) {
        throw new ServiceError("SCOPE_MISSING", `the asking key does not have the scope ${scope} itself`);
      }
    }
    const expiresAtMs = Number(request.expiresAtMs);
    if (expiresAtMs !== 0 && !(Number.isSafeInteger(expiresAtMs) && expiresAtMs > nowMs)) {
      throw new ServiceError("INVALID_REQUEST", "expires_at_ms: lies in the past");
    }
    const own = await store.get(tenantId, parseId("key", asking.apiKeyId, "api_key_id"));
    if (own && own.expiresAtMs > 0 && (expiresAtMs === 0 || expiresAtMs > own.expiresAtMs)) {
      throw new ServiceError("INVALID_REQUEST", `expires_at_ms: the asking key itself ends at ${own.expiresAtMs}`);
    }
    const { key, secret, digest } = newKey({ ...request, tenantId, expiresAtMs, nowMs }, this.#deps.random);
    await store.insert(key, digest, maxInForce);
    return { key, secret };
  }

  list(tenantId: TenantId): Promise<ApiKeyRow[]> {
    return this.#deps.store.list(tenantId, this.#deps.clock.nowMs());
  }

  /** Ends a key at once, streams included. */
  async revoke(tenantId: TenantId, apiKeyId: ApiKeyId): Promise<ApiKeyRow> {
    const { store, keyring, clock } = this.#deps;
    await store.revoke(tenantId, apiKeyId, clock.nowMs());
    const key = await store.get(tenantId, apiKeyId);
    if (!key) throw new ServiceError("API_KEY_NOT_FOUND", `the tenant has no key ${apiKeyId}`);
    keyring.forget(apiKeyId);
    return key;
  }
}

/** Makes a key; its secret exists only in the answer. */
export function newKey(
  options: {
    readonly tenantId: TenantId;
    readonly name: string;
    readonly scopes: readonly string[];
    readonly expiresAtMs: number;
    readonly nowMs: number;
  },
  random: RandomBytes,
) {
  const { tenantId, name, scopes, expiresAtMs, nowMs } = options;
  const secret = newApiKeySecret(random);
  const digest = digestOfSecret(secret);
  if (!digest) throw new Error("a new secret is not of its own form");
  const key: ApiKeyRow = {
    apiKeyId: newId("key", nowMs, random),
    tenantId,
    name,
    scopes,
    createdAtMs: nowMs,
    expiresAtMs,
    revokedAtMs: 0,
  };
  return { key, secret, digest };
}
