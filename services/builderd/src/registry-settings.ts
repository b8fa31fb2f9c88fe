import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Settings } from "@unkey/daemon";
import type { RegistryMirror } from "@unkey/oci";

/** How registries are reached and trusted; what may be built from them stands in the policy. */
export interface RegistrySettings {
  /** By the registry whose images they hold; in the order in which they are asked. */
  readonly mirrors: ReadonlyMap<string, readonly RegistryMirror[]>;
  /** PEM, trusted beside the system's. */
  readonly caCertificates: readonly string[];
  /** File of logins by tenant, see `CredentialFile`. */
  readonly credentialFile: string | undefined;
}

const host = String.raw`(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::\d{1,5})?`;
const mirrorPattern = new RegExp(`^(${host})=(${host})((?:/[a-z0-9._/-]+)?)$`);

/** Reads REGISTRY_MIRRORS, REGISTRY_TAG_MIRRORS, REGISTRY_CA_FILE and REGISTRY_CREDENTIALS_FILE. */
export function readRegistrySettings(settings: Settings): RegistrySettings {
  return {
    mirrors: readMirrors(settings),
    caCertificates: readAuthorities(settings),
    credentialFile: settings.path("REGISTRY_CREDENTIALS_FILE", { default: undefined }),
  };
}

function readMirrors(settings: Settings): Map<string, RegistryMirror[]> {
  const lines = settings.list("REGISTRY_MIRRORS", { default: [], pattern: mirrorPattern });
  const forTags = new Set(settings.list("REGISTRY_TAG_MIRRORS", { default: [] }));
  const mirrors = new Map<string, RegistryMirror[]>();
  const known = new Set<string>();
  for (const line of lines) {
    const [, origin = "", mirror = "", prefix = ""] = mirrorPattern.exec(line) ?? [];
    known.add(mirror);
    const list = mirrors.get(origin) ?? [];
    list.push({ host: mirror, prefix: prefix === "" ? "" : `${prefix.slice(1)}/`, resolvesTags: forTags.has(mirror) });
    mirrors.set(origin, list);
  }
  for (const each of forTags) {
    if (!known.has(each)) {
      settings.mistake(`UNKEY_BUILDERD_REGISTRY_TAG_MIRRORS: ${each} is not among UNKEY_BUILDERD_REGISTRY_MIRRORS`);
    }
  }
  return mirrors;
}

function readAuthorities(settings: Settings): string[] {
  const path = settings.path("REGISTRY_CA_FILE", { default: undefined });
  if (path === undefined) return [];
  try {
    const certificates = readFileSync(path, "utf8").match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g);
    if (certificates === null) throw new Error("it holds no certificate in PEM");
    return certificates.map((pem) => new X509Certificate(pem).toString());
  } catch (error) {
    const said = error instanceof Error ? error.message : String(error);
    settings.mistake(`UNKEY_BUILDERD_REGISTRY_CA_FILE: ${path}: ${said}`);
    return [];
  }
}
