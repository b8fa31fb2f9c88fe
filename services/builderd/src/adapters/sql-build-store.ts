import type { AssetId, BuildId, TenantId } from "@unkey/base";
import { nextState, ServiceError } from "@unkey/base";
import type { Sql, SqlStatements, SqlValue } from "@unkey/sql";
import { type Build, type BuildResult, requestDigest, sourceText } from "../domain/build.ts";
import { type BuildEvent, type BuildState, buildTransitions, isTerminal } from "../domain/build-state.ts";
import type { BuildProcess } from "../domain/process.ts";
import type { Admission, BuildChange, BuildLimits, BuildStore, LogLine, NewBuild, Retention } from "../ports.ts";
import { mustFindBuild, selectBuilds } from "./build-rows.ts";
import { usedToday } from "./sql-quota-store.ts";
import { pruneBuilds } from "./sql-retention.ts";
import { mustHoldUpload } from "./sql-upload-store.ts";

interface ResultRow {
  readonly image_digest: string;
  readonly asset_id: AssetId;
  readonly rootfs_bytes: number;
  readonly provenance_asset_id: AssetId | "";
  readonly sbom_asset_id: AssetId | "";
  readonly process: string;
}

const unfinishedStates = "state NOT IN ('completed', 'failed', 'cancelled')";
/** Of one build: characters, at most four bytes each. */
const maxLogLines = 2000;
const maxLogLineLength = 2000;
const maxLogLength = 512 * 1024;
const logIsFull = "the log is full: later lines are left out";

export class SqlBuildStore implements BuildStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async create(wanted: NewBuild, limits: BuildLimits, admit?: Admission): Promise<{ build: Build; created: boolean }> {
    const { tenantId, buildId, idempotencyKey, request, withCredentials, platform, nowMs } = wanted;
    return this.#sql.transaction(async (tx) => {
      const [known] = await selectBuilds(tx, "tenant_id = ? AND idempotency_key = ?", [tenantId, idempotencyKey]);
      if (known !== undefined) {
        if (requestDigest(known.request) === requestDigest(request)) return { build: known, created: false };
        throw new ServiceError(
          "IDEMPOTENCY_KEY_REUSED",
          `the key "${idempotencyKey}" already stands for another build`,
        );
      }
      const { source, plainHttp, argvOverride, format } = request;
      const text = sourceText(source);
      // From here on the row keeps the upload, as it is in the same transaction.
      const held = source.kind === "upload" ? await mustHoldUpload(tx, tenantId, source.uploadId, nowMs) : undefined;
      const imageName = held === undefined || held.name === "" ? text : held.name;
      await refuseOver(tx, limits.unfinished, "the builder", unfinishedStates, []);
      await refuseOver(tx, limits.unfinishedPerTenant, "the tenant", `tenant_id = ? AND ${unfinishedStates}`, [
        tenantId,
      ]);
      if (admit !== undefined) admit.check(await usedToday(tx, tenantId, admit.today));
      await tx.run(
        `INSERT INTO build (tenant_id, build_id, idempotency_key, source_kind, source, image_name, plain_http, format,
           argv_override, with_credentials, state, platform, created_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?)`,
        [
          tenantId,
          buildId,
          idempotencyKey,
          source.kind,
          text,
          imageName,
          plainHttp ? 1 : 0,
          format,
          JSON.stringify(argvOverride),
          withCredentials ? 1 : 0,
          platform,
          nowMs,
        ],
      );
      await beginStep(tx, buildId, "pending", nowMs);
      return { build: await mustFindBuild(tx, tenantId, buildId), created: true };
    });
  }

  async get(tenantId: TenantId, buildId: BuildId): Promise<Build> {
    return mustFindBuild(this.#sql, tenantId, buildId);
  }

  async list(tenantId: TenantId, limit: number, beforeId: string): Promise<Build[]> {
    return beforeId === ""
      ? selectBuilds(this.#sql, "tenant_id = ? ORDER BY build_id DESC LIMIT ?", [tenantId, limit])
      : selectBuilds(this.#sql, "tenant_id = ? AND build_id < ? ORDER BY build_id DESC LIMIT ?", [
          tenantId,
          beforeId,
          limit,
        ]);
  }

  async unfinished(): Promise<Build[]> {
    return selectBuilds(this.#sql, `${unfinishedStates} ORDER BY build_id`, []);
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
    const { tenantId, buildId } = build;
    const { failure, completion, bytes, stepEndedAtMs = nowMs } = change;
    // After a power failure a build begins again in any case: only its end is worth waiting for the disk.
    const durability = isTerminal(to) ? "power" : "process";
    const body = async (tx: SqlStatements): Promise<boolean> => {
      const moved = await tx.run(
        `UPDATE build SET state = ?, attempts = attempts + ?, alive_at_ms = ?, ended_at_ms = ?
         WHERE tenant_id = ? AND build_id = ? AND state = ?`,
        [to, event === "pull" ? 1 : 0, nowMs, isTerminal(to) ? nowMs : 0, tenantId, buildId, from],
      );
      if (moved.changes === 0) return false;
      if (failure !== undefined) {
        await tx.run("UPDATE build SET failure = ? WHERE build_id = ?", [JSON.stringify(failure), buildId]);
      }
      if (completion !== undefined) {
        const { result, rootfsKey, process, cacheHit } = completion;
        const { imageDigest, rootfsAssetId, rootfsBytes, provenanceAssetId, sbomAssetId } = result;
        const made = [imageDigest, rootfsAssetId, rootfsBytes, provenanceAssetId, sbomAssetId];
        await tx.run(
          `UPDATE build SET image_digest = ?, rootfs_asset_id = ?, rootfs_bytes = ?, provenance_asset_id = ?,
             sbom_asset_id = ?, process = ?, cache_hit = ? WHERE build_id = ?`,
          [...made, JSON.stringify(process), cacheHit ? 1 : 0, buildId],
        );
        await tx.run(
          `INSERT OR REPLACE INTO rootfs (image_digest, asset_id, rootfs_bytes, provenance_asset_id, sbom_asset_id,
             process, tenant_id, rootfs_key, used_at_ms)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
          [...made, JSON.stringify(result.process), tenantId, rootfsKey, nowMs],
        );
      }
      await tx.run(
        "UPDATE build_step SET ended_at_ms = ?, bytes_done = ?, bytes_total = ? WHERE build_id = ? AND ended_at_ms = 0",
        [stepEndedAtMs, bytes?.done ?? 0, bytes?.total ?? 0, buildId],
      );
      await beginStep(tx, buildId, to, nowMs);
      return true;
    };
    return this.#sql.transaction(body, { durability });
  }

  async setResolved(build: Build, { imageDigest, policyDigest }: Pick<Build, "imageDigest" | "policyDigest">) {
    const change = "UPDATE build SET image_digest = ?, policy_digest = ? WHERE tenant_id = ? AND build_id = ?";
    const values = [imageDigest, policyDigest, build.tenantId, build.buildId];
    await this.#sql.transaction((tx) => tx.run(change, values), { durability: "process" });
  }

  async setAlive(buildIds: readonly BuildId[], nowMs: number): Promise<void> {
    const marks = buildIds.map(() => "?").join(", ");
    await this.#sql.run(`UPDATE build SET alive_at_ms = ? WHERE build_id IN (${marks}) AND ${unfinishedStates}`, [
      nowMs,
      ...buildIds,
    ]);
  }

  prune(retention: Retention): Promise<number> {
    return pruneBuilds(this.#sql, retention);
  }

  async findResult(tenantId: TenantId, key: string): Promise<BuildResult | undefined> {
    const row = await this.#sql.one<ResultRow>("SELECT * FROM rootfs WHERE tenant_id = ? AND rootfs_key = ?", [
      tenantId,
      key,
    ]);
    return (
      row && {
        imageDigest: row.image_digest,
        rootfsAssetId: row.asset_id,
        rootfsBytes: row.rootfs_bytes,
        provenanceAssetId: row.provenance_asset_id,
        sbomAssetId: row.sbom_asset_id,
        process: JSON.parse(row.process) as BuildProcess,
      }
    );
  }

  async forgetResult(tenantId: TenantId, key: string): Promise<void> {
    await this.#sql.run("DELETE FROM rootfs WHERE tenant_id = ? AND rootfs_key = ?", [tenantId, key]);
  }

  async log(build: Build, text: string, nowMs: number): Promise<void> {
    const { buildId } = build;
    const line = text.replaceAll("\n", " ").slice(0, maxLogLineLength);
    await this.#sql.transaction(
      async (tx) => {
        const held = await tx.one<{ lines: number; length: number }>(
          "SELECT count(*) AS lines, coalesce(sum(length(text)), 0) AS length FROM build_log WHERE build_id = ?",
          [buildId],
        );
        const { lines, length } = held ?? { lines: 0, length: 0 };
        const last = await tx.one<{ text: string }>("SELECT text FROM build_log WHERE build_id = ? AND sequence = ?", [
          buildId,
          lines,
        ]);
        if (last?.text === logIsFull) return;
        const full = lines === maxLogLines - 1 || length + line.length > maxLogLength;
        await tx.run("INSERT INTO build_log (build_id, sequence, at_ms, text) VALUES (?, ?, ?, ?)", [
          buildId,
          lines + 1,
          nowMs,
          full ? logIsFull : line,
        ]);
      },
      { durability: "process" },
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
