import { toBinary } from "@bufbuild/protobuf";
import { type CreateDeploymentRequest, CreateDeploymentRequestSchema } from "@unkey/api/gateway";
import { type AppId, type DeploymentId, nextState, ServiceError, type TenantId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import { sameDigest } from "../domain/api-key.ts";
import {
  type DeploymentEvent,
  type DeploymentState,
  deploymentTransitions,
  isTerminal,
  stepKinds,
} from "../domain/deployment.ts";
import { holdImage } from "../registry/manifest-store.ts";
import { notPushed } from "../registry/pushed-images.ts";
import { bumpRoutes } from "./app-store.ts";
import { forgetEnv } from "./forget-env.ts";
import { type DeploymentRow, selectApps, selectDeployments } from "./rows.ts";
import { deleteUnusedApp } from "./unused-app.ts";

/** A repeat within this time returns the first deployment. */
export const idempotencyLifetimeMs = 24 * 3_600_000;

export interface Idempotency {
  readonly key: string;
  readonly requestSha256: Uint8Array;
}

export interface NewDeployment {
  readonly tenantId: TenantId;
  readonly deploymentId: DeploymentId;
  /** Used when the app is new. */
  readonly appId: AppId;
  readonly appName: string;
  /** Without credentials. */
  readonly request: CreateDeploymentRequest;
  readonly withCredentials: boolean;
  /** The image as the caller named it, where the request names it otherwise. */
  readonly imageAsked?: string;
  readonly idempotency?: Idempotency;
  readonly nowMs: number;
  /** Refused when the tenant has so many that are not terminal. */
  readonly maxOpen: number;
}

/** Deployments as callers see them. */
export class DeploymentStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** The deployment that an earlier request of that key made. Throws IDEMPOTENCY_KEY_REUSED. */
  async repeated(tenantId: TenantId, idempotency: Idempotency, nowMs: number): Promise<DeploymentId | undefined> {
    return this.#sql.transaction((tx) => repeatedDeployment(tx, { tenantId, idempotency, nowMs }));
  }

  /**
   * Writes a deployment with its steps, and its app when that is new. The idempotency key decides first: known with the
   * same request, it answers the deployment it named; with another, IDEMPOTENCY_KEY_REUSED.
   */
  async create(input: NewDeployment): Promise<{ deploymentId: DeploymentId; created: boolean }> {
    return this.#sql.transaction(async (tx) => {
      const earlier = await repeatedDeployment(tx, input);
      if (earlier !== undefined) return { deploymentId: earlier, created: false };
      const { tenantId, deploymentId, nowMs } = input;
      const open = await tx.one<{ count: number }>(
        "SELECT COUNT(*) AS count FROM deployment WHERE tenant_id = ? AND ended_at_ms = 0",
        [tenantId],
      );
      if ((open?.count ?? 0) >= input.maxOpen) {
        throw new ServiceError("TOO_MANY_DEPLOYMENTS", `${input.maxOpen} deployments of the tenant are under way`);
      }
      const appId = await appFor(tx, input);
      const { source } = input.request.image ?? {};
      const pushed = source?.case === "pushed" ? source.value : undefined;
      await tx.run(
        "INSERT INTO deployment (deployment_id, tenant_id, app_id, state, request, with_credentials, build_id, image_digest, image_asked, rootfs_asset_id, port, cancel_requested, lease_owner, lease_until_ms, epoch, revision, created_at_ms, ended_at_ms) VALUES (?, ?, ?, 'queued', ?, ?, '', ?, ?, '', ?, 0, '', 0, 0, 1, ?, 0)",
        [
          deploymentId,
          tenantId,
          appId,
          toBinary(CreateDeploymentRequestSchema, input.request),
          input.withCredentials ? 1 : 0,
          pushed?.tagOrDigest ?? "",
          input.imageAsked ?? "",
          input.request.port,
          nowMs,
        ],
      );
      if (
        pushed &&
        !(await holdImage(tx, deploymentId, { tenantId, repository: pushed.repository }, pushed.tagOrDigest))
      ) {
        throw notPushed({ repository: pushed.repository, reference: pushed.tagOrDigest });
      }
      for (const [position, kind] of stepKinds.entries()) {
        await tx.run(
          "INSERT INTO deployment_step (deployment_id, position, kind, state, started_at_ms, ended_at_ms, detail, attempts) VALUES (?, ?, ?, 'pending', 0, 0, '', 0)",
          [deploymentId, position, kind],
        );
      }
      if (input.idempotency) {
        await tx.run(
          "INSERT INTO idempotency (tenant_id, idempotency_key, request_sha256, deployment_id, created_at_ms) VALUES (?, ?, ?, ?, ?)",
          [tenantId, input.idempotency.key, input.idempotency.requestSha256, deploymentId, nowMs],
        );
      }
      return { deploymentId, created: true };
    });
  }

  /** Throws DEPLOYMENT_NOT_FOUND. */
  async get(tenantId: TenantId, deploymentId: DeploymentId): Promise<DeploymentRow> {
    return mustFind(this.#sql, tenantId, deploymentId);
  }

  /** Newest first, before `beforeId` when that is not empty. */
  async list(options: {
    readonly tenantId: TenantId;
    readonly appName: string;
    readonly limit: number;
    readonly beforeId: string;
  }): Promise<DeploymentRow[]> {
    const { tenantId, appName, limit, beforeId } = options;
    const ofApp = appName === "" ? "" : "AND a.name = ?";
    const before = beforeId === "" ? "" : "AND d.deployment_id < ?";
    const params = [tenantId, ...(appName === "" ? [] : [appName]), ...(beforeId === "" ? [] : [beforeId]), limit];
    return selectDeployments(
      this.#sql,
      `d.tenant_id = ? ${ofApp} ${before} ORDER BY d.deployment_id DESC LIMIT ?`,
      params,
    );
  }

  /**
   * Asks for a deployment to be given up. One that nobody has begun ends at once, one under way when its executor
   * notices. Once routed it is DEPLOYMENT_NOT_CANCELLABLE; a terminal one stays as it is.
   */
  async requestCancel(tenantId: TenantId, deploymentId: DeploymentId, nowMs: number): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      const row = await mustFind(tx, tenantId, deploymentId);
      if (row.state === "succeeded") {
        throw new ServiceError("DEPLOYMENT_NOT_CANCELLABLE", `${deploymentId} has succeeded already`);
      }
      if (isTerminal(row.state) || row.cancelRequested) return;
      if (row.steps.some((step) => step.kind === "route" && step.state === "done")) {
        throw new ServiceError("DEPLOYMENT_NOT_CANCELLABLE", `${deploymentId} serves already`);
      }
      const state = nextState<DeploymentState, DeploymentEvent>(deploymentTransitions, row.state, "cancel");
      if (state === "cancelled") {
        await tx.run(
          "UPDATE deployment SET state = ?, ended_at_ms = ?, cancel_requested = 1, epoch = epoch + 1, revision = revision + 1 WHERE deployment_id = ?",
          [state, nowMs, deploymentId],
        );
        await tx.run("UPDATE deployment_step SET state = 'skipped' WHERE deployment_id = ?", [deploymentId]);
        await forgetEnv(tx, "deployment_id = ?", [deploymentId]);
        await deleteUnusedApp(tx, deploymentId, nowMs);
      } else if (state !== undefined) {
        await tx.run("UPDATE deployment SET cancel_requested = 1, revision = revision + 1 WHERE deployment_id = ?", [
          deploymentId,
        ]);
      }
    });
  }

  /** Forgets idempotency keys that have had their time. */
  async forgetIdempotencyBefore(atMs: number): Promise<void> {
    await this.#sql.run("DELETE FROM idempotency WHERE created_at_ms < ?", [atMs]);
  }
}

async function mustFind(sql: SqlStatements, tenantId: TenantId, deploymentId: DeploymentId): Promise<DeploymentRow> {
  const [row] = await selectDeployments(sql, "d.tenant_id = ? AND d.deployment_id = ?", [tenantId, deploymentId]);
  if (!row) throw new ServiceError("DEPLOYMENT_NOT_FOUND", `the tenant has no deployment ${deploymentId}`);
  return row;
}

async function repeatedDeployment(
  tx: SqlStatements,
  input: Pick<NewDeployment, "tenantId" | "idempotency" | "nowMs">,
): Promise<DeploymentId | undefined> {
  if (!input.idempotency) return undefined;
  const { key, requestSha256 } = input.idempotency;
  const known = await tx.one<{ request_sha256: Uint8Array; deployment_id: DeploymentId; created_at_ms: number }>(
    "SELECT request_sha256, deployment_id, created_at_ms FROM idempotency WHERE tenant_id = ? AND idempotency_key = ?",
    [input.tenantId, key],
  );
  if (!known) return undefined;
  if (known.created_at_ms < input.nowMs - idempotencyLifetimeMs) {
    await tx.run("DELETE FROM idempotency WHERE tenant_id = ? AND idempotency_key = ?", [input.tenantId, key]);
    return undefined;
  }
  if (!sameDigest(known.request_sha256, requestSha256)) {
    throw new ServiceError(
      "IDEMPOTENCY_KEY_REUSED",
      `the idempotency key was used for another request, which made ${known.deployment_id}`,
      { metadata: { deploymentId: known.deployment_id } },
    );
  }
  return known.deployment_id;
}

async function appFor(tx: SqlStatements, input: NewDeployment): Promise<AppId> {
  const [app] = await selectApps(tx, "name = ? AND deleted_at_ms = 0", [input.appName]);
  if (!app) {
    await tx.run(
      "INSERT INTO app (app_id, tenant_id, name, state, deployment_id, created_at_ms, deleted_at_ms) VALUES (?, ?, ?, 'live', '', ?, 0)",
      [input.appId, input.tenantId, input.appName, input.nowMs],
    );
    await bumpRoutes(tx); // the ingress knows the name from now on
    return input.appId;
  }
  if (app.tenantId !== input.tenantId) {
    throw new ServiceError("APP_NAME_TAKEN", `the name ${input.appName} belongs to somebody else's app`);
  }
  if (app.state === "deleting") {
    throw new ServiceError("APP_CHANGED_MEANWHILE", `the app ${input.appName} is being deleted`, {
      nextStep: "Try again when `unkey apps` no longer lists it.",
    });
  }
  return app.appId;
}
