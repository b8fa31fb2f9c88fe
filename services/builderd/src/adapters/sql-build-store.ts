import { type AssetId, type BuildId, nextState, ServiceError, type TenantId, type UploadId } from "@unkey/base";
import type { Sql, SqlStatements, SqlValue } from "@unkey/sql";
import {
  type Build,
  type BuildFailure,
  type BuildResult,
  type BuildStep,
  requestDigest,
  rootfsKey,
} from "../domain/build.ts";
import { type BuildEvent, type BuildState, buildTransitions, isTerminal } from "../domain/build-state.ts";
import type { BuildProcess } from "../domain/process.ts";
import type { BuildChange, BuildLimits, BuildStore, LogLine, NewBuild } from "../ports.ts";
import { mustHoldUpload } from "./sql-upload-store.ts";

interface BuildRow {
  readonly tenant_id: TenantId;
  readonly build_id: BuildId;
  readonly idempotency_key: string;
  readonly source_kind: "reference" | "upload";
  readonly source: string;
  readonly plain_http: number;
  readonly argv_override: string;
  readonly with_credentials: number;
  readonly state: BuildState;
  readonly attempts: number;
  readonly platform: string;
  readonly image_digest: string;
  readonly cache_hit: number;
  readonly rootfs_asset_id: AssetId | "";
  readonly rootfs_bytes: number;
  readonly process: string | null;
  readonly failure: string | null;
  readonly created_at_ms: number;
}

interface StepRow {
  readonly state: BuildState;
  readonly started_at_ms: number;
  readonly ended_at_ms: number;
  readonly bytes_done: number;
  readonly bytes_total: number;
}

const unfinishedStates = "state NOT IN ('completed', 'failed', 'cancelled')";
const maxLogLines = 2000;
const maxLogLineLength = 2000;

export class SqlBuildStore implements BuildStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async create(wanted: NewBuild, limits: BuildLimits): Promise<{ build: Build; created: boolean }> {
    const { tenantId, buildId, idempotencyKey, request, withCredentials, platform, nowMs } = wanted;
    return this.#sql.transaction(async (tx) => {
      const [known] = await select(tx, "tenant_id = ? AND idempotency_key = ?", [tenantId, idempotencyKey]);
      if (known !== undefined) {
        if (requestDigest(known.request) === requestDigest(request)) return { build: known, created: false };
        throw new ServiceError(
          "IDEMPOTENCY_KEY_REUSED",
          `the key "${idempotencyKey}" already stands for another build`,
        );
      }
      // From here on the row keeps the upload, as it is in the same transaction.
      if (request.source.kind === "upload") await mustHoldUpload(tx, tenantId, request.source.uploadId, nowMs);
      await refuseOver(tx, limits.unfinished, "the builder", unfinishedStates, []);
      await refuseOver(tx, limits.unfinishedPerTenant, "the tenant", `tenant_id = ? AND ${unfinishedStates}`, [
        tenantId,
      ]);
      const { source, plainHttp, argvOverride } = request;
      await tx.run(
        `INSERT INTO build (tenant_id, build_id, idempotency_key, source_kind, source, plain_http,
           argv_override, with_credentials, state, platform, created_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?)`,
        [
          tenantId,
          buildId,
          idempotencyKey,
          source.kind,
          source.kind === "upload" ? source.uploadId : source.reference,
          plainHttp ? 1 : 0,
          JSON.stringify(argvOverride),
          withCredentials ? 1 : 0,
          platform,
          nowMs,
        ],
      );
      await beginStep(tx, buildId, "pending", nowMs);
      return { build: await mustFind(tx, tenantId, buildId), created: true };
    });
  }

  async get(tenantId: TenantId, buildId: BuildId): Promise<Build> {
    return mustFind(this.#sql, tenantId, buildId);
  }

  async list(tenantId: TenantId, limit: number, beforeId: string): Promise<Build[]> {
    return beforeId === ""
      ? select(this.#sql, "tenant_id = ? ORDER BY build_id DESC LIMIT ?", [tenantId, limit])
      : select(this.#sql, "tenant_id = ? AND build_id < ? ORDER BY build_id DESC LIMIT ?", [tenantId, beforeId, limit]);
  }

  async unfinished(): Promise<Build[]> {
    return select(this.#sql, `${unfinishedStates} ORDER BY build_id`, []);
  }

  async advance(
    build: Build,
    from: BuildState,
    event: BuildEvent,
    change: BuildChange,
    nowMs: number,
  ): Promise<boolean> {
    const to = nextState(buildTransitions, from, event);
    if (to === undefined) throw new Error(`a build that is ${from} cannot ${event}`);
    const { tenantId, buildId, platform } = build;
    const { imageDigest, failure, completion, bytes } = change;
    return this.#sql.transaction(async (tx) => {
      const moved = await tx.run(
        "UPDATE build SET state = ?, attempts = attempts + ? WHERE tenant_id = ? AND build_id = ? AND state = ?",
        [to, event === "pull" ? 1 : 0, tenantId, buildId, from],
      );
      if (moved.changes === 0) return false;
      if (imageDigest !== undefined) {
        await tx.run("UPDATE build SET image_digest = ? WHERE build_id = ?", [imageDigest, buildId]);
      }
      if (failure !== undefined) {
        await tx.run("UPDATE build SET failure = ? WHERE build_id = ?", [JSON.stringify(failure), buildId]);
      }
      if (completion !== undefined) {
        const { result, process, cacheHit } = completion;
        await tx.run(
          "UPDATE build SET image_digest = ?, cache_hit = ?, rootfs_asset_id = ?, rootfs_bytes = ?, process = ? WHERE build_id = ?",
          [
            result.imageDigest,
            cacheHit ? 1 : 0,
            result.rootfsAssetId,
            result.rootfsBytes,
            JSON.stringify(process),
            buildId,
          ],
        );
        await tx.run(
          `INSERT OR REPLACE INTO rootfs (tenant_id, rootfs_key, image_digest, asset_id, rootfs_bytes, process)
           VALUES (?, ?, ?, ?, ?, ?)`,
          [
            tenantId,
            rootfsKey(result.imageDigest, platform),
            result.imageDigest,
            result.rootfsAssetId,
            result.rootfsBytes,
            JSON.stringify(result.process),
          ],
        );
      }
      await tx.run(
        "UPDATE build_step SET ended_at_ms = ?, bytes_done = ?, bytes_total = ? WHERE build_id = ? AND ended_at_ms = 0",
        [nowMs, bytes?.done ?? 0, bytes?.total ?? 0, buildId],
      );
      await beginStep(tx, buildId, to, nowMs);
      return true;
    });
  }

  async setImageDigest(build: Build, imageDigest: string): Promise<void> {
    await this.#sql.run("UPDATE build SET image_digest = ? WHERE tenant_id = ? AND build_id = ?", [
      imageDigest,
      build.tenantId,
      build.buildId,
    ]);
  }

  async findResult(tenantId: TenantId, key: string): Promise<BuildResult | undefined> {
    const row = await this.#sql.one<{ image_digest: string; asset_id: AssetId; rootfs_bytes: number; process: string }>(
      "SELECT image_digest, asset_id, rootfs_bytes, process FROM rootfs WHERE tenant_id = ? AND rootfs_key = ?",
      [tenantId, key],
    );
    return (
      row && {
        imageDigest: row.image_digest,
        rootfsAssetId: row.asset_id,
        rootfsBytes: row.rootfs_bytes,
        process: JSON.parse(row.process) as BuildProcess,
      }
    );
  }

  async forgetResult(tenantId: TenantId, key: string): Promise<void> {
    await this.#sql.run("DELETE FROM rootfs WHERE tenant_id = ? AND rootfs_key = ?", [tenantId, key]);
  }

  async log(build: Build, text: string, nowMs: number): Promise<void> {
    await this.#sql.run(
      `INSERT INTO build_log (build_id, sequence, at_ms, text)
       SELECT ?, lines + 1, ?, ? FROM (SELECT count(*) AS lines FROM build_log WHERE build_id = ?) WHERE lines < ?`,
      [build.buildId, nowMs, text.replaceAll("\n", " ").slice(0, maxLogLineLength), build.buildId, maxLogLines],
    );
  }

  async readLog(build: Build, afterSequence: number, limit: number): Promise<LogLine[]> {
    return this.#sql.query<{ sequence: number; atMs: number; text: string }>(
      "SELECT sequence, at_ms AS atMs, text FROM build_log WHERE build_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
      [build.buildId, afterSequence, limit],
    );
  }
}

async function refuseOver(
  tx: SqlStatements,
  limit: number,
  who: string,
  where: string,
  params: readonly SqlValue[],
): Promise<void> {
  const row = await tx.one<{ count: number }>(`SELECT count(*) AS count FROM build WHERE ${where}`, params);
  if ((row?.count ?? 0) < limit) return;
  throw new ServiceError("BUILD_QUEUE_FULL", `${who} has ${limit} builds that have not ended`);
}

/** A terminal state is entered and left in the same instant. */
async function beginStep(tx: SqlStatements, buildId: BuildId, state: BuildState, nowMs: number): Promise<void> {
  await tx.run(
    `INSERT INTO build_step (build_id, ordinal, state, started_at_ms, ended_at_ms, bytes_done, bytes_total)
     SELECT ?, count(*), ?, ?, ?, 0, 0 FROM build_step WHERE build_id = ?`,
    [buildId, state, nowMs, isTerminal(state) ? nowMs : 0, buildId],
  );
}

async function mustFind(from: SqlStatements, tenantId: TenantId, buildId: BuildId): Promise<Build> {
  const [build] = await select(from, "tenant_id = ? AND build_id = ?", [tenantId, buildId]);
  if (build === undefined) throw new ServiceError("BUILD_NOT_FOUND", `the tenant has no build ${buildId}`);
  return build;
}

async function select(from: SqlStatements, where: string, params: readonly SqlValue[]): Promise<Build[]> {
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
      source:
        row.source_kind === "upload"
          ? { kind: "upload", uploadId: row.source as UploadId }
          : { kind: "reference", reference: row.source },
      plainHttp: row.plain_http === 1,
      argvOverride: JSON.parse(row.argv_override) as string[],
    },
    withCredentials: row.with_credentials === 1,
    state: row.state,
    attempts: row.attempts,
    platform: row.platform,
    imageDigest: row.image_digest,
    cacheHit: row.cache_hit === 1,
    rootfsAssetId: row.rootfs_asset_id,
    rootfsBytes: row.rootfs_bytes,
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
  };
}
