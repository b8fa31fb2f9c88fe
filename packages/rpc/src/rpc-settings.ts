import type { DaemonContext, Settings } from "@unkey/daemon";
import { IdentitySource } from "@unkey/pki";

/** What every daemon that serves RPCs can be told. */
export interface RpcSettings {
  readonly host: string;
  readonly port: number;
  /** Holds tls.crt, tls.key and ca.crt. */
  readonly identityDir: string;
  /** Refuses an identity of another trust domain when set. */
  readonly trustDomain: string | undefined;
}

/** Reads LISTEN_HOST, LISTEN_PORT, IDENTITY_DIR and TRUST_DOMAIN. */
export function readRpcSettings(settings: Settings, options: { readonly defaultPort: number }): RpcSettings {
  return {
    host: settings.string("LISTEN_HOST", { default: "127.0.0.1" }),
    port: settings.port("LISTEN_PORT", { default: options.defaultPort }),
    identityDir: settings.path("IDENTITY_DIR"),
    trustDomain: settings.string("TRUST_DOMAIN", { default: undefined, pattern: /^[a-z0-9._-]{1,255}$/ }),
  };
}

/** The daemon's identity and its renewals; throws IDENTITY_UNUSABLE, because without one a daemon does not start. */
export function openIdentity(
  settings: RpcSettings,
  context: Pick<DaemonContext, "name" | "log" | "health">,
): IdentitySource {
  const source = IdentitySource.open(settings.identityDir, {
    service: context.name,
    ...(settings.trustDomain === undefined ? {} : { trustDomain: settings.trustDomain }),
    onError: (error) => context.log.warn("renewed identity not usable yet", { error }),
  });
  context.health.layer("mtls", { active: true, detail: "TLS 1.3, client certificates required" });
  context.health.dependency("identity", () => {
    if (source.current.expiresAtMs <= Date.now()) throw new Error("the certificate has expired and was not renewed");
  });
  return source;
}
