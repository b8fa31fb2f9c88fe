import { ServiceError } from "@unkey/base";
import type { Logger } from "@unkey/daemon";
import type { AuditLog } from "../api/audit-log.ts";
import type { Keyring } from "../api/keyring.ts";
import { type RateLimiter, rateLimitHeaders } from "../api/rate-limiter.ts";
import { scopeAllows } from "../domain/scopes.ts";
import type { ApiKeyRow } from "../store/key-store.ts";
import type { RegistryResource, RegistryVerb } from "./registry-route.ts";

/** Uploads and downloads that a tenant may have under way, with the streams of the rest of the API. */
const maxStreamsPerTenant = 256;
/** What every client is challenged with: a user name of its choice and an API key as the password (RFC 7617). */
export const challenge = 'Basic realm="Unkey Deploy"';

/** How a request shows in the audit log: reads once a minute, moves between an upload's begin and end not at all. */
export interface Act {
  readonly name: string;
  readonly kind: "read" | "write" | "transfer";
}

const acts: Readonly<Record<RegistryResource["kind"], Partial<Record<RegistryVerb, Act>>>> = {
  base: {},
  catalog: { GET: { name: "ListRepositories", kind: "read" } },
  uploads: { POST: { name: "PushBlob", kind: "transfer" } },
  upload: {
    GET: { name: "GetBlobUpload", kind: "transfer" },
    PATCH: { name: "PushBlob", kind: "transfer" },
    PUT: { name: "PushBlob", kind: "transfer" },
    DELETE: { name: "CancelBlobUpload", kind: "transfer" },
  },
  blob: {
    GET: { name: "PullBlob", kind: "read" },
    HEAD: { name: "PullBlob", kind: "read" },
    DELETE: { name: "DeleteBlob", kind: "write" },
  },
  manifest: {
    GET: { name: "PullManifest", kind: "read" },
    HEAD: { name: "PullManifest", kind: "read" },
    PUT: { name: "PushManifest", kind: "write" },
    DELETE: { name: "DeleteManifest", kind: "write" },
  },
  tags: { GET: { name: "ListTags", kind: "read" } },
  referrers: { GET: { name: "ListReferrers", kind: "read" } },
};

export function actOf(resource: RegistryResource, verb: RegistryVerb): Act {
  return acts[resource.kind][verb] ?? { name: "Login", kind: "read" };
}

/** The scope that a request needs; undefined where any key will do. */
export function scopeOf(resource: RegistryResource, verb: RegistryVerb): string | undefined {
  if (resource.kind === "base") return undefined;
  const reads = (verb === "GET" || verb === "HEAD") && resource.kind !== "upload";
  return reads ? "deployments:read" : "deployments:write";
}

/** What the request is about, for the audit log; the layers of one image are one line. */
export function targetOf(resource: RegistryResource, digest: string | undefined): string {
  if (!("repository" in resource)) return "";
  const { repository } = resource;
  const named =
    resource.kind === "manifest"
      ? `${repository}${resource.reference.includes(":") ? "@" : ":"}${resource.reference}`
      : repository;
  const text = digest === undefined || named.endsWith(digest) ? named : `${named}@${digest}`;
  return text.slice(0, 256);
}

export interface RegistryGateDeps {
  readonly keyring: Keyring;
  readonly limiter: RateLimiter;
  readonly audit: AuditLog;
  readonly log: Logger;
}

/** Who may do what in the registry: the same keys, scopes, limits and audit log as for every other call of the API. */
export class RegistryGate {
  readonly #deps: RegistryGateDeps;

  constructor(deps: RegistryGateDeps) {
    this.#deps = deps;
  }

  /** Throws UNAUTHENTICATED with what to do about it. */
  async identify(authorization: string | undefined): Promise<ApiKeyRow> {
    try {
      return await this.#deps.keyring.identify(bearerOf(authorization));
    } catch (error) {
      if (!(error instanceof ServiceError) || error.reason !== "UNAUTHENTICATED") throw error;
      throw new ServiceError("UNAUTHENTICATED", error.message, {
        nextStep: "Log in with an API key as the password: `docker login <gateway> -u unkey --password-stdin`.",
      });
    }
  }

  /** Throws SCOPE_MISSING or RATE_LIMITED; `tell` gets the headers that tell about the rate. */
  admit(key: ApiKeyRow, scope: string | undefined, tell: (name: string, value: string) => void): void {
    const { limiter } = this.#deps;
    if (scope !== undefined && !scopeAllows(key.scopes, scope)) {
      throw new ServiceError("SCOPE_MISSING", `the API key lacks the scope ${scope}`, { metadata: { scope } });
    }
    const decision = limiter.take(key.apiKeyId);
    for (const [name, value] of rateLimitHeaders(limiter.limit, decision)) tell(name, value);
    if (decision.allowed) return;
    const { perSecond } = limiter.limit;
    throw new ServiceError("RATE_LIMITED", `the API key is limited to ${perSecond} requests a second`);
  }

  /** Counts a request as a stream of its key; the signal ends it when the key ends. Throws TOO_MANY_STREAMS. */
  stream(key: ApiKeyRow): Disposable & { readonly signal: AbortSignal } {
    const { keyring } = this.#deps;
    if (keyring.streamsOf(key.tenantId) >= maxStreamsPerTenant) {
      throw new ServiceError("TOO_MANY_STREAMS", `the tenant has ${maxStreamsPerTenant} streams open`);
    }
    return keyring.whileInForce(key);
  }

  /** Writes down what was done or denied. */
  async record(entry: {
    readonly key: ApiKeyRow | undefined;
    readonly act: Act;
    readonly target: string;
    /** `ok`, or the reason that the caller was told. */
    readonly outcome: string;
    /** It changed what the registry holds. */
    readonly changed: boolean;
    readonly requestId: string;
  }): Promise<void> {
    const { audit, log } = this.#deps;
    const { key, act, target, outcome, changed, requestId } = entry;
    const ok = outcome === "ok";
    const denied = ["UNAUTHENTICATED", "SCOPE_MISSING", "RATE_LIMITED"].includes(outcome);
    const row = {
      tenantId: key?.tenantId ?? "",
      actor: key?.apiKeyId ?? "",
      action: act.name,
      target,
      outcome,
      requestId,
    };
    if (ok && act.kind === "read") audit.recordRead(row);
    else if (ok ? changed : denied || act.kind === "write") {
      await audit.record(row).catch((error: unknown) => log.error("an audit record was not written", { error }));
    }
  }
}

/** Clients of registries send the key as the password of any user; a bearer token is taken as it is. */
function bearerOf(authorization: string | undefined): string | null {
  if (authorization === undefined) return null;
  const encoded = /^Basic +([A-Za-z0-9+/=_-]{1,1024})$/i.exec(authorization)?.[1];
  if (encoded === undefined) return authorization;
  const text = Buffer.from(encoded, "base64").toString("utf8");
  return `Bearer ${text.slice(text.indexOf(":") + 1)}`;
}
