import { create, toBinary } from "@bufbuild/protobuf";
import { type ProcessConfig, ProcessConfigSchema } from "@unkey/api/common";
import { type DeploymentFailure, DeploymentFailureSchema } from "@unkey/api/gateway";
import { type Vm, VmSchema } from "@unkey/api/metal";
import { type DeploymentId, nextState, type VmId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import {
  type DeploymentEvent,
  type DeploymentState,
  deploymentTransitions,
  type StepEvent,
  type StepKind,
  type StepState,
  stepTransitions,
} from "../domain/deployment.ts";
import { bumpRoutes } from "./app-store.ts";
import { forgetEnv } from "./forget-env.ts";
import { type DeploymentRow, selectDeployments } from "./rows.ts";
import { deleteUnusedApp } from "./unused-app.ts";

/** The right to work on a deployment until the lease ends; the epoch tells it from every earlier and later one. */
export interface Claim {
  readonly deploymentId: DeploymentId;
  readonly epoch: number;
}

/** Another replica took the deployment over: whoever meets this stops without a further word. */
export class ClaimLost extends Error {
  constructor(claim: Claim) {
    super(`${claim.deploymentId}: the claim of epoch ${claim.epoch} is lost`);
    this.name = "ClaimLost";
  }
}

export interface PlannedVm {
  readonly vmId: VmId;
  readonly ordinal: number;
  readonly hostId: string;
  readonly reservationId: string;
}

/** What the build found out; absent fields stay as they are. */
export interface BuildFacts {
  readonly buildId?: string;
  readonly imageDigest?: string;
  readonly imageAsked?: string;
  readonly rootfsAssetId?: string;
  readonly process?: ProcessConfig;
  readonly port?: number;
}

/**
 * Deployments as their executor sees them. Every write names its claim and fails with ClaimLost when the claim is not
 * the newest, so a replica that was thought dead cannot undo what its successor did.
 */
export class WorkStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /**
   * Takes the oldest deployment that waits or whose lease is over: at most one per app at a time, in the order in which
   * they were accepted. Tenants with fewer of this owner's claims come first and none holds more than `mostPerTenant`, so
   * that one whose deployments hang does not keep the others waiting.
   */
  async claim(
    owner: string,
    nowMs: number,
    leaseMs: number,
    mostPerTenant = Number.MAX_SAFE_INTEGER,
  ): Promise<Claim | undefined> {
    return this.#sql.transaction(async (tx) => {
      const row = await tx.one<{ deployment_id: DeploymentId; state: DeploymentState; epoch: number }>(
        `WITH held AS (
           SELECT tenant_id, COUNT(*) AS claims FROM deployment
           WHERE ended_at_ms = 0 AND lease_owner = ? AND lease_until_ms > ? GROUP BY tenant_id
         )
         SELECT d.deployment_id, d.state, d.epoch FROM deployment d
         LEFT JOIN held h ON h.tenant_id = d.tenant_id
         WHERE d.ended_at_ms = 0 AND d.lease_until_ms <= ? AND COALESCE(h.claims, 0) < ?
         AND NOT EXISTS (
           SELECT 1 FROM deployment o
           WHERE o.app_id = d.app_id AND o.ended_at_ms = 0 AND o.deployment_id <> d.deployment_id
           AND (o.state <> 'queued' OR o.deployment_id < d.deployment_id)
         )
         ORDER BY COALESCE(h.claims, 0), d.deployment_id LIMIT 1`,
        [owner, nowMs, nowMs, mostPerTenant],
      );
      if (!row) return undefined;
      const claim = { deploymentId: row.deployment_id, epoch: row.epoch + 1 };
      await tx.run(
        "UPDATE deployment SET state = ?, lease_owner = ?, lease_until_ms = ?, epoch = ?, revision = revision + 1 WHERE deployment_id = ?",
        [mustMove(row.state, "take"), owner, nowMs + leaseMs, claim.epoch, claim.deploymentId],
      );
      return claim;
    });
  }

  /** Ends the leases that an earlier life of `owner` left behind. */
  async releaseAll(owner: string): Promise<void> {
    await this.#sql.run("UPDATE deployment SET lease_until_ms = 0 WHERE lease_owner = ? AND ended_at_ms = 0", [owner]);
  }

  /** Prolongs the lease and tells whether the caller has asked to give up. Throws ClaimLost. */
  async renew(claim: Claim, untilMs: number): Promise<{ cancelRequested: boolean }> {
    const row = await this.#sql.one<{ cancel_requested: number }>(
      "UPDATE deployment SET lease_until_ms = ? WHERE deployment_id = ? AND epoch = ? AND ended_at_ms = 0 RETURNING cancel_requested",
      [untilMs, claim.deploymentId, claim.epoch],
    );
    if (!row) throw new ClaimLost(claim);
    return { cancelRequested: row.cancel_requested === 1 };
  }

  /** Lets any replica go on at once. */
  async release(claim: Claim): Promise<void> {
    await this.#sql.run("UPDATE deployment SET lease_until_ms = 0 WHERE deployment_id = ? AND epoch = ?", [
      claim.deploymentId,
      claim.epoch,
    ]);
  }

  async load(claim: Claim): Promise<DeploymentRow> {
    const [row] = await selectDeployments(this.#sql, "d.deployment_id = ? AND d.epoch = ?", [
      claim.deploymentId,
      claim.epoch,
    ]);
    if (!row) throw new ClaimLost(claim);
    return row;
  }

  async startStep(claim: Claim, kind: StepKind, nowMs: number): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      await moveStep(tx, claim, kind, "start");
      // The first start counts: deadlines do not begin anew with every replica that takes over.
      await tx.run(
        "UPDATE deployment_step SET attempts = attempts + 1, started_at_ms = CASE started_at_ms WHEN 0 THEN ? ELSE started_at_ms END WHERE deployment_id = ? AND kind = ?",
        [nowMs, claim.deploymentId, kind],
      );
    });
  }

  async describeStep(claim: Claim, kind: StepKind, detail: string): Promise<void> {
    await this.#fenced(claim, (tx) => setDetail(tx, claim, kind, detail));
  }

  async endStep(claim: Claim, kind: StepKind, event: "finish" | "skip", detail: string, nowMs: number): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      await moveStep(tx, claim, kind, event);
      await setDetail(tx, claim, kind, detail);
      await endedAt(tx, claim, kind, nowMs);
    });
  }

  async saveBuild(claim: Claim, facts: BuildFacts): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      const { process } = facts;
      await tx.run(
        "UPDATE deployment SET build_id = COALESCE(?, build_id), image_digest = COALESCE(?, image_digest), image_asked = COALESCE(?, image_asked), rootfs_asset_id = COALESCE(?, rootfs_asset_id), process = COALESCE(?, process), port = COALESCE(?, port) WHERE deployment_id = ?",
        [
          facts.buildId ?? null,
          facts.imageDigest ?? null,
          facts.imageAsked ?? null,
          facts.rootfsAssetId ?? null,
          process ? toBinary(ProcessConfigSchema, process) : null,
          facts.port ?? null,
          claim.deploymentId,
        ],
      );
    });
  }

  /** Notes where a VM goes, before anybody is asked for it; an ordinal that has a VM moves to the new host. */
  async planVm(claim: Claim, vm: PlannedVm, nowMs: number): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      const moved = await tx.run(
        "UPDATE vm SET host_id = ?, reservation_id = ? WHERE deployment_id = ? AND ordinal = ?",
        [vm.hostId, vm.reservationId, claim.deploymentId, vm.ordinal],
      );
      if (moved.changes > 0) return;
      await tx.run(
        "INSERT INTO vm (vm_id, tenant_id, app_id, deployment_id, ordinal, host_id, reservation_id, ip_address, wanted, settled, hold_until_ms, revision, created_at_ms) SELECT ?, tenant_id, app_id, deployment_id, ?, ?, ?, '', 'running', 1, 0, 1, ? FROM deployment WHERE deployment_id = ?",
        [vm.vmId, vm.ordinal, vm.hostId, vm.reservationId, nowMs, claim.deploymentId],
      );
    });
  }

  /** Keeps what a host said about a VM. */
  async sawVm(claim: Claim, vm: Vm): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      await tx.run("UPDATE vm SET ip_address = ?, last_seen = ? WHERE vm_id = ? AND deployment_id = ?", [
        vm.ipAddress,
        toBinary(VmSchema, vm),
        vm.vmId,
        claim.deploymentId,
      ]);
    });
  }

  /** Wants the deployment's VMs gone; from here on a pass removes them even if the executor dies. */
  async condemnVms(claim: Claim): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      await tx.run(
        "UPDATE vm SET wanted = 'deleted', settled = 0, hold_until_ms = 0, revision = revision + 1 WHERE deployment_id = ? AND wanted <> 'deleted'",
        [claim.deploymentId],
      );
    });
  }

  /**
   * The swap: the app serves this deployment, and the VMs of the one before are wanted gone once they have drained.
   * False, and nothing changed, when the caller has asked to give up meanwhile.
   */
  async route(claim: Claim, nowMs: number, drainUntilMs: number): Promise<boolean> {
    return this.#fenced(claim, async (tx) => {
      const row = await tx.one<{ app_id: string; cancel_requested: number }>(
        "SELECT app_id, cancel_requested FROM deployment WHERE deployment_id = ?",
        [claim.deploymentId],
      );
      if (!row || row.cancel_requested === 1) return false;
      await tx.run("UPDATE app SET deployment_id = ? WHERE app_id = ?", [claim.deploymentId, row.app_id]);
      await tx.run(
        "UPDATE vm SET wanted = 'deleted', settled = 0, hold_until_ms = ?, revision = revision + 1 WHERE app_id = ? AND deployment_id <> ? AND wanted <> 'deleted'",
        [drainUntilMs, row.app_id, claim.deploymentId],
      );
      await bumpRoutes(tx);
      await moveStep(tx, claim, "route", "finish");
      await endedAt(tx, claim, "route", nowMs);
      return true;
    });
  }

  /** A step failed: what was done has to be undone, what was to come is skipped. */
  async fail(
    claim: Claim,
    kind: StepKind,
    failure: Omit<DeploymentFailure, "$typeName">,
    nowMs: number,
  ): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      await moveStep(tx, claim, kind, "fail");
      await setDetail(tx, claim, kind, failure.message);
      await endedAt(tx, claim, kind, nowMs);
      await this.#moveTo(tx, claim, "fail");
      await tx.run("UPDATE deployment SET failure = ? WHERE deployment_id = ?", [
        toBinary(DeploymentFailureSchema, create(DeploymentFailureSchema, failure)),
        claim.deploymentId,
      ]);
    });
  }

  /** The caller gave up: as `fail`, with nobody to blame. */
  async cancel(claim: Claim): Promise<void> {
    await this.#fenced(claim, (tx) => this.#moveTo(tx, claim, "cancel"));
  }

  async undoStep(claim: Claim, kind: StepKind, nowMs: number): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      await moveStep(tx, claim, kind, "undo");
      await tx.run(
        "UPDATE deployment_step SET ended_at_ms = CASE ended_at_ms WHEN 0 THEN ? ELSE ended_at_ms END WHERE deployment_id = ? AND kind = ?",
        [nowMs, claim.deploymentId, kind],
      );
    });
  }

  /** The last word: succeeded, or failed or cancelled once everything is undone. */
  async finish(claim: Claim, event: "complete" | "undone", nowMs: number): Promise<void> {
    await this.#fenced(claim, async (tx) => {
      await this.#moveTo(tx, claim, event);
      await tx.run("UPDATE deployment SET ended_at_ms = ?, lease_until_ms = 0 WHERE deployment_id = ?", [
        nowMs,
        claim.deploymentId,
      ]);
      if (event === "undone") {
        await forgetEnv(tx, "deployment_id = ?", [claim.deploymentId]);
        await deleteUnusedApp(tx, claim.deploymentId, nowMs);
      }
    });
  }

  async #moveTo(tx: SqlStatements, claim: Claim, event: DeploymentEvent): Promise<void> {
    const row = await tx.one<{ state: DeploymentState }>("SELECT state FROM deployment WHERE deployment_id = ?", [
      claim.deploymentId,
    ]);
    if (!row) throw new ClaimLost(claim);
    await tx.run("UPDATE deployment SET state = ? WHERE deployment_id = ?", [
      mustMove(row.state, event),
      claim.deploymentId,
    ]);
    if (event === "fail" || event === "cancel") {
      await tx.run("UPDATE deployment_step SET state = 'skipped' WHERE deployment_id = ? AND state = 'pending'", [
        claim.deploymentId,
      ]);
    }
  }

  async #fenced<T>(claim: Claim, body: (tx: SqlStatements) => Promise<T>): Promise<T> {
    return this.#sql.transaction(async (tx) => {
      const held = await tx.run(
        "UPDATE deployment SET revision = revision + 1 WHERE deployment_id = ? AND epoch = ? AND ended_at_ms = 0",
        [claim.deploymentId, claim.epoch],
      );
      if (held.changes === 0) throw new ClaimLost(claim);
      return body(tx);
    });
  }
}

function mustMove(state: DeploymentState, event: DeploymentEvent): DeploymentState {
  const next = nextState(deploymentTransitions, state, event);
  if (next === undefined) throw new Error(`a deployment that is ${state} cannot ${event}`);
  return next;
}

async function moveStep(tx: SqlStatements, claim: Claim, kind: StepKind, event: StepEvent): Promise<void> {
  const row = await tx.one<{ state: StepState }>(
    "SELECT state FROM deployment_step WHERE deployment_id = ? AND kind = ?",
    [claim.deploymentId, kind],
  );
  const next = row && nextState<StepState, StepEvent>(stepTransitions, row.state, event);
  if (next === undefined) throw new Error(`the step ${kind} that is ${row?.state ?? "missing"} cannot ${event}`);
  await tx.run("UPDATE deployment_step SET state = ? WHERE deployment_id = ? AND kind = ?", [
    next,
    claim.deploymentId,
    kind,
  ]);
}

async function setDetail(tx: SqlStatements, claim: Claim, kind: StepKind, detail: string): Promise<void> {
  await tx.run("UPDATE deployment_step SET detail = ? WHERE deployment_id = ? AND kind = ?", [
    detail,
    claim.deploymentId,
    kind,
  ]);
}

async function endedAt(tx: SqlStatements, claim: Claim, kind: StepKind, nowMs: number): Promise<void> {
  await tx.run("UPDATE deployment_step SET ended_at_ms = ? WHERE deployment_id = ? AND kind = ?", [
    nowMs,
    claim.deploymentId,
    kind,
  ]);
}
