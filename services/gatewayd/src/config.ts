import { join } from "node:path";
import { gib, mib } from "@unkey/base";
import { type Address, parseAddress, type Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";

export interface Config {
  /** Where the API listens, and the identity for calls to other services. */
  readonly rpc: RpcSettings;
  /** Holds the database, the ingress authority, the replica's name and the bootstrap key. */
  readonly dataDir: string;
  readonly ingressHost: string;
  readonly ingressPort: number;
  /** The port that clients reach the ingress by, for the addresses of apps; undefined for the one it listens on. */
  readonly ingressPublicPort: number | undefined;
  /** Apps answer at `<app>.<domain>`. */
  readonly appDomain: string;
  /** Host names that clients reach the API by. */
  readonly apiNames: readonly string[];
  /** Where the ingress authority's certificate is written for clients. */
  readonly caFile: string;
  /** The port that clients reach the API by, for references to pushed images; undefined for the one it listens on. */
  readonly apiPublicPort: number | undefined;
  readonly builder: Address;
  /** Keeps the bytes of pushed images. */
  readonly assetManager: Address;
  readonly aggregator: Address;
  readonly hosts: readonly { readonly name: string; readonly address: Address }[];
  readonly rateBurst: number;
  readonly ratePerSecond: number;
  readonly maxUploadBytes: number;
  readonly maxAppBodyBytes: number;
  /** Of the registry: see RegistryLimits. */
  readonly maxBlobBytes: number;
  readonly registryQuotaBytes: number;
  readonly registryGraceMs: number;
  readonly registryUntaggedMs: number;
  readonly registrySweepMs: number;
  readonly leaseMs: number;
  readonly patienceMs: number;
}

const dayMs = 86_400_000;
const hostName = /^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$/;

export function readConfig(settings: Settings): Config {
  const dataDir = settings.path("DATA_DIR");
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8000 }),
    dataDir,
    ingressHost: settings.string("INGRESS_HOST", { default: "127.0.0.1" }),
    ingressPort: settings.port("INGRESS_PORT", { default: 8443 }),
    ingressPublicPort: settings.int("INGRESS_PUBLIC_PORT", { min: 1, max: 65_535, default: undefined }),
    appDomain: settings.string("APP_DOMAIN", { default: "localhost", pattern: hostName }),
    apiNames: settings.list("API_NAMES", { default: ["localhost"], pattern: hostName }),
    caFile: settings.path("CA_FILE", { default: undefined }) ?? join(dataDir, "ingress-ca.crt"),
    apiPublicPort: settings.int("API_PUBLIC_PORT", { min: 1, max: 65_535, default: undefined }),
    builder: settings.address("BUILDERD_ADDRESS"),
    assetManager: settings.address("ASSETMANAGERD_ADDRESS"),
    aggregator: settings.address("AGGREGATOR_ADDRESS"),
    hosts: readHosts(settings),
    rateBurst: settings.int("RATE_LIMIT_BURST", { min: 1, max: 1_000_000, default: 1000 }),
    ratePerSecond: settings.int("RATE_LIMIT_PER_SECOND", { min: 1, max: 1_000_000, default: 200 }),
    maxUploadBytes: settings.bytes("UPLOAD_LIMIT", { min: mib, max: 1024 * gib, default: 8 * gib }),
    maxAppBodyBytes: settings.bytes("APP_BODY_LIMIT", { min: 1024, max: 1024 * gib, default: gib }),
    maxBlobBytes: settings.bytes("BLOB_LIMIT", { min: mib, max: 1024 * gib, default: 16 * gib }),
    registryQuotaBytes: settings.bytes("REGISTRY_QUOTA", { min: mib, max: 1024 * 1024 * gib, default: 256 * gib }),
    registryGraceMs: settings.durationMs("REGISTRY_GRACE", { min: 1000, max: 90 * dayMs, default: dayMs }),
    registryUntaggedMs: settings.durationMs("REGISTRY_UNTAGGED", { min: 1000, max: 3650 * dayMs, default: 30 * dayMs }),
    registrySweepMs: settings.durationMs("REGISTRY_SWEEP", { min: 100, max: dayMs, default: 600_000 }),
    leaseMs: settings.durationMs("LEASE", { min: 1000, max: 600_000, default: 15_000 }),
    patienceMs: settings.durationMs("PATIENCE", { min: 0, max: 3_600_000, default: 30_000 }),
  };
}

/** The metald of every host, separated by commas. */
function readHosts(settings: Settings): Config["hosts"] {
  return settings.list("METALD_ADDRESSES").flatMap((text) => {
    try {
      return [{ name: text, address: parseAddress(text) }];
    } catch (error) {
      settings.mistake(`UNKEY_GATEWAYD_METALD_ADDRESSES: ${error instanceof Error ? error.message : String(error)}`);
      return [];
    }
  });
}
