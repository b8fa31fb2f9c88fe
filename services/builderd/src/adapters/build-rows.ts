import { type AssetId, type BuildId, ServiceError, type TenantId } from "@unkey/base";
import type { SqlStatements, SqlValue } from "@unkey/sql";
import {
  type Build,
  type BuildFailure,
  type BuildSource,
  type BuildStep,
  type RootfsFormat,
  sourceOf,
} from "../domain/build.ts";
import type { BuildState } from "../domain/build-state.ts";
import type { BuildProcess } from "../domain/process.ts";

interface BuildRow {
  readonly tenant_id: TenantId;
  readonly build_id: BuildId;
  readonly idempotency_key: string;
  readonly source_kind: BuildSource["kind"];
  readonly source: string;
  readonly image_name: string;
  readonly plain_http: number;
  readonly format: RootfsFormat;
  readonly argv_override: string;
  readonly with_credentials: number;
  readonly state: BuildState;
  readonly attempts: number;
  readonly platform: string;
  readonly image_digest: string;
  readonly policy_digest: string;
  readonly cache_hit: number;
  readonly rootfs_asset_id: AssetId | "";
  readonly rootfs_bytes: number;
  readonly provenance_asset_id: AssetId | "";
  readonly sbom_asset_id: AssetId | "";
  readonly process: string | null;
  readonly failure: string | null;
  readonly created_at_ms: number;
  readonly alive_at_ms: number;
}

interface StepRow {
  readonly state: BuildState;
  readonly started_at_ms: number;
  readonly ended_at_ms: number;
  readonly bytes_done: number;
  readonly bytes_total: number;
}

/** Throws BUILD_NOT_FOUND. */
export async function mustFindBuild(from: SqlStatements, tenantId: TenantId, buildId: BuildId): Promise<Build> {
  const [build] = await selectBuilds(from, "tenant_id = ? AND build_id = ?", [tenantId, buildId]);
  if (build === undefined) throw new ServiceError("BUILD_NOT_FOUND", `the tenant has no build ${buildId}`);
  return build;
}

export async function selectBuilds(from: SqlStatements, where: string, params: readonly SqlValue[]): Promise<Build[]> {
  const builds: Build[] = [];
  for (const row of await from.query<BuildRow>(`SELECT * FROM build WHERE ${where}`, params)) {
    const steps = await from.query<StepRow>(
      "SELECT state, started_at_ms, ended_at_ms, bytes_done, bytes_total FROM build_step WHERE build_id = ? ORDER BY ordinal",
      [row.build_id],
    );
    builds.push(buildOf(row, steps));
  }
  return builds;
}

function buildOf(row: BuildRow, steps: readonly StepRow[]): Build {
  return {
    buildId: row.build_id,
    tenantId: row.tenant_id,
    idempotencyKey: row.idempotency_key,
    request: {
      source: sourceOf(row.source_kind, row.source),
      plainHttp: row.plain_http === 1,
      format: row.format,
      argvOverride: JSON.parse(row.argv_override) as string[],
    },
    imageName: row.image_name,
    withCredentials: row.with_credentials === 1,
    state: row.state,
    attempts: row.attempts,
    platform: row.platform,
    imageDigest: row.image_digest,
    policyDigest: row.policy_digest,
    cacheHit: row.cache_hit === 1,
    rootfsAssetId: row.rootfs_asset_id,
    rootfsBytes: row.rootfs_bytes,
    provenanceAssetId: row.provenance_asset_id,
    sbomAssetId: row.sbom_asset_id,
    process: row.process === null ? undefined : (JSON.parse(row.process) as BuildProcess),
    failure: row.failure === null ? undefined : (JSON.parse(row.failure) as BuildFailure),
    steps: steps.map(
      (step): BuildStep => ({
        state: step.state,
        startedAtMs: step.started_at_ms,
        endedAtMs: step.ended_at_ms,
        bytesDone: step.bytes_done,
        bytesTotal: step.bytes_total,
      }),
    ),
    createdAtMs: row.created_at_ms,
    aliveAtMs: row.alive_at_ms,
  };
}
