import { gib, mib } from "@unkey/base";
import type { Address, Secret, Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";
import type { S3Settings } from "./adapters/s3/s3-client.ts";

const dayMs = 86_400_000;

export interface Config {
  readonly rpc: RpcSettings;
  /** Holds `assets.db` and `blobs/`. */
  readonly dataDir: string;
  /** Directories below which assets may be staged; none forbids staging. */
  readonly stagingRoots: readonly string[];
  /** Directories below which files are taken as uploads without being sent; none forbids it. */
  readonly intakeRoots: readonly string[];
  readonly maxAssetBytes: number;
  /** Per tenant; 0 for no limit. The platform has none. */
  readonly tenantQuotaBytes: number;
  readonly tenantQuotaAssets: number;
  /** An upload that nobody adds to for so long is given up. */
  readonly uploadLifetimeMs: number;
  readonly gcIntervalMs: number;
  readonly gcGraceMs: number;
  /** What the scrubber may read in a second; 0 turns it off. */
  readonly scrubBytesPerSecond: number;
  readonly scrubRoundMs: number;
  /** Builds what a query does not find; undefined refuses such queries. */
  readonly builder: Address | undefined;
  /** Where blobs are kept; undefined for this host's disk. */
  readonly remote: RemoteConfig | undefined;
}

export interface RemoteConfig {
  readonly s3: S3Settings;
  /** Of every object's key. Belongs to this catalog alone: what the catalog does not know there is removed. */
  readonly prefix: string;
  /** Copies that this host keeps. */
  readonly cacheMaxBytes: number;
  /** 32 bytes in base64 under which blobs are sealed; undefined leaves them as they are. */
  readonly blobKey: Secret | undefined;
}

export function readConfig(settings: Settings): Config {
  const tebibyte = 1024 * gib;
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8083 }),
    dataDir: settings.path("DATA_DIR"),
    stagingRoots: settings.list("STAGING_ROOTS", { default: [], pattern: /^\// }),
    intakeRoots: settings.list("INTAKE_ROOTS", { default: [], pattern: /^\// }),
    maxAssetBytes: settings.bytes("ASSET_LIMIT", { min: mib, max: tebibyte, default: 16 * gib }),
    tenantQuotaBytes: settings.bytes("TENANT_QUOTA", { min: 0, max: 1024 * tebibyte, default: 0 }),
    tenantQuotaAssets: settings.int("TENANT_QUOTA_ASSETS", { min: 0, max: 100_000_000, default: 0 }),
    uploadLifetimeMs: settings.durationMs("UPLOAD_LIFETIME", { min: 60_000, max: 30 * dayMs, default: dayMs }),
    gcIntervalMs: settings.durationMs("GC_INTERVAL", { min: 1000, max: 7 * dayMs, default: 600_000 }),
    gcGraceMs: settings.durationMs("GC_GRACE", { min: 0, max: 3650 * dayMs, default: 7 * dayMs }),
    scrubBytesPerSecond: settings.bytes("SCRUB_RATE", { min: 0, max: 16 * gib, default: 16 * mib }),
    scrubRoundMs: settings.durationMs("SCRUB_ROUND", { min: 60_000, max: 365 * dayMs, default: dayMs }),
    builder: settings.address("BUILDERD_ADDRESS", { default: undefined }),
    remote: readRemote(settings),
  };
}

function readRemote(settings: Settings): RemoteConfig | undefined {
  const endpoint = settings.string("S3_ENDPOINT", { default: undefined, pattern: /^https?:\/\/[^/?#]+$/ });
  const bucket = settings.string("S3_BUCKET", { default: "", pattern: /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/ });
  const accessKeyId = settings.string("S3_ACCESS_KEY_ID", { default: "" });
  const secret = settings.secretFile("S3_SECRET_ACCESS_KEY", { default: undefined });
  const prefix = settings.string("S3_PREFIX", { default: "", pattern: /^([a-z0-9-]+\/)*$/ });
  const region = settings.string("S3_REGION", { default: "us-east-1" });
  const caFile = settings.path("S3_CA_FILE", { default: undefined });
  const cacheMaxBytes = settings.bytes("CACHE_LIMIT", { min: gib, max: 1024 * 1024 * gib, default: 64 * gib });
  const blobKey = settings.secretFile("BLOB_KEY", { default: undefined });
  if (endpoint === undefined) {
    if (bucket !== "" || blobKey !== undefined) settings.mistake("S3_BUCKET and BLOB_KEY_FILE need S3_ENDPOINT");
    return undefined;
  }
  if (bucket === "" || accessKeyId === "" || secret === undefined) {
    settings.mistake("S3_ENDPOINT needs S3_BUCKET, S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY_FILE");
    return undefined;
  }
  if (endpoint.startsWith("http:") && !/^http:\/\/(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$/.test(endpoint)) {
    settings.mistake("S3_ENDPOINT must be https: only a service on this host is spoken to without TLS");
  }
  const s3 = { endpoint, region, bucket, accessKeyId, secretAccessKey: secret, caFile };
  return { s3, prefix, cacheMaxBytes, blobKey };
}
