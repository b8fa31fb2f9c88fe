import { toBinary } from "@bufbuild/protobuf";
import { type Vm, VmSchema } from "@unkey/api/metal";
import { type AppId, type DeploymentId, ServiceError, type TenantId, type VmId } from "@unkey/base";
import type { Sql, SqlStatements } from "@unkey/sql";
import { forgetEnv } from "./forget-env.ts";
import { type AppRow, selectApps, selectVms, type VmRow, type WantedVmState } from "./rows.ts";

/** One app and where its requests may go. */
export interface RouteRow {
  readonly appName: string;
  readonly appId: AppId;
  readonly deploymentId: DeploymentId | "";
  readonly port: number;
  readonly upstreams: readonly { readonly vmId: VmId; readonly ipAddress: string }[];
}

/** Tells every replica's ingress that its table is old; part of each transaction that changes where requests go. */
export async function bumpRoutes(tx: SqlStatements): Promise<void> {
  await tx.run("UPDATE route_revision SET revision = revision + 1 WHERE id = 1");
}

/** Apps, their VMs and the routes to them. */
export class AppStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  /** The app of that name, being deleted or not. Throws APP_NOT_FOUND. */
  async get(tenantId: TenantId, name: string): Promise<AppRow> {
    return mustFind(this.#sql, tenantId, name);
  }

  /** The app that has the name, or the last one that had it: usage and logs outlive an app. Throws APP_NOT_FOUND. */
  async latest(tenantId: TenantId, name: string): Promise<AppRow> {
    const [app] = await selectApps(
      this.#sql,
      "tenant_id = ? AND name = ? ORDER BY (deleted_at_ms = 0) DESC, app_id DESC LIMIT 1",
      [tenantId, name],
    );
    if (!app) throw notFound(name);
    return app;
  }

  /** By name, after `afterName`. */
  async list(tenantId: TenantId, limit: number, afterName: string): Promise<AppRow[]> {
    return selectApps(this.#sql, "tenant_id = ? AND deleted_at_ms = 0 AND name > ? ORDER BY name LIMIT ?", [
      tenantId,
      afterName,
      limit,
    ]);
  }

  /** Names of the tenant's apps by id, deleted ones too. */
  async names(tenantId: TenantId, appIds: readonly string[]): Promise<Map<string, string>> {
    const names = new Map<string, string>();
    const batchSize = 500;
    for (let from = 0; from < appIds.length; from += batchSize) {
      const batch = appIds.slice(from, from + batchSize);
      const marks = batch.map(() => "?").join(", ");
      const rows = await selectApps(this.#sql, `tenant_id = ? AND app_id IN (${marks})`, [tenantId, ...batch]);
      for (const { appId, name } of rows) names.set(appId, name);
    }
    return names;
  }

  /** VMs of the release that each app serves. */
  async releaseVms(tenantId: TenantId, apps: readonly AppRow[]): Promise<VmRow[]> {
    const ids = apps.map((app) => app.deploymentId).filter((id) => id !== "");
    if (ids.length === 0) return [];
    const marks = ids.map(() => "?").join(", ");
    return selectVms(
      this.#sql,
      `tenant_id = ? AND deployment_id IN (${marks}) AND wanted <> 'deleted' ORDER BY deployment_id, ordinal`,
      [tenantId, ...ids],
    );
  }

  /** Throws VM_NOT_FOUND. */
  async getVm(tenantId: TenantId, vmId: VmId): Promise<VmRow> {
    return mustFindVm(this.#sql, tenantId, vmId);
  }

  /** Newest first, before `beforeId` when that is not empty. */
  async listVms(options: {
    readonly tenantId: TenantId;
    readonly appId: AppId | "";
    readonly includeDeleted: boolean;
    readonly limit: number;
    readonly beforeId: string;
  }): Promise<VmRow[]> {
    const { tenantId, appId, includeDeleted, limit, beforeId } = options;
    const where = [
      "tenant_id = ?",
      ...(appId === "" ? [] : ["app_id = ?"]),
      ...(includeDeleted ? [] : ["NOT (wanted = 'deleted' AND settled = 1)"]),
      ...(beforeId === "" ? [] : ["vm_id < ?"]),
    ].join(" AND ");
    const params = [tenantId, ...(appId === "" ? [] : [appId]), ...(beforeId === "" ? [] : [beforeId]), limit];
    return selectVms(this.#sql, `${where} ORDER BY vm_id DESC LIMIT ?`, params);
  }

  /** The app's youngest VM that is not deleted; with none of those, its youngest. */
  async newestVm(tenantId: TenantId, appId: AppId): Promise<VmRow | undefined> {
    const [vm] = await selectVms(
      this.#sql,
      "tenant_id = ? AND app_id = ? ORDER BY (wanted <> 'deleted') DESC, vm_id DESC LIMIT 1",
      [tenantId, appId],
    );
    return vm;
  }

  /** Keeps what a host said about a VM. */
  async sawVm(vm: Vm): Promise<void> {
    await this.#sql.run("UPDATE vm SET ip_address = ?, last_seen = ? WHERE vm_id = ?", [
      vm.ipAddress,
      toBinary(VmSchema, vm),
      vm.vmId,
    ]);
  }

  /** Wants the app's VMs stopped; answers those that have to be. Throws DEPLOYMENT_IN_PROGRESS. */
  async stopApp(tenantId: TenantId, name: string): Promise<VmRow[]> {
    return this.#sql.transaction(async (tx) => {
      const app = await mustBeIdle(tx, tenantId, name);
      if (app.deploymentId === "") throw new ServiceError("APP_NOT_DEPLOYED", `the app ${name} was never deployed`);
      await tx.run(
        "UPDATE vm SET wanted = 'stopped', settled = 0, hold_until_ms = 0, revision = revision + 1 WHERE app_id = ? AND wanted = 'running'",
        [app.appId],
      );
      await bumpRoutes(tx);
      return selectVms(tx, "app_id = ? AND settled = 0", [app.appId]);
    });
  }

  /**
   * The VMs of the app's release, for the caller to boot. Those that are stopped stay wanted so, but no pass touches
   * them before `holdUntilMs`: should the caller die, they are stopped again then.
   */
  async beginStart(tenantId: TenantId, name: string, holdUntilMs: number): Promise<VmRow[]> {
    return this.#sql.transaction(async (tx) => {
      const app = await mustBeIdle(tx, tenantId, name);
      const vms = await selectVms(tx, "deployment_id = ? AND wanted <> 'deleted' ORDER BY ordinal", [app.deploymentId]);
      if (vms.length === 0) throw new ServiceError("APP_NOT_DEPLOYED", `the app ${name} has no release to start`);
      for (const vm of vms) await holdStopped(tx, vm.vmId, holdUntilMs);
      return selectVms(tx, "deployment_id = ? AND wanted <> 'deleted' ORDER BY ordinal", [app.deploymentId]);
    });
  }

  async beginVmStart(tenantId: TenantId, vmId: VmId, holdUntilMs: number): Promise<VmRow> {
    return this.#sql.transaction(async (tx) => {
      await mustFindVm(tx, tenantId, vmId);
      await holdStopped(tx, vmId, holdUntilMs);
      return mustFindVm(tx, tenantId, vmId);
    });
  }

  /** The started VMs serve. Throws APP_CHANGED_MEANWHILE when somebody wanted something else since. */
  async commitStart(vms: readonly VmRow[]): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      for (const vm of vms) {
        const done = await tx.run(
          "UPDATE vm SET wanted = 'running', settled = 1, hold_until_ms = 0, revision = revision + 1 WHERE vm_id = ? AND revision = ?",
          [vm.vmId, vm.revision],
        );
        if (done.changes === 0) {
          throw new ServiceError(
            "APP_CHANGED_MEANWHILE",
            "the app was stopped, deleted or deployed while it was starting",
          );
        }
      }
      await bumpRoutes(tx);
    });
  }

  /** Lets a pass see to VMs that were held. */
  async endHold(vms: readonly VmRow[]): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      for (const { vmId } of vms) await tx.run("UPDATE vm SET hold_until_ms = 0 WHERE vm_id = ?", [vmId]);
    });
  }

  /** Wants the app and all its VMs gone. Throws DEPLOYMENT_IN_PROGRESS. */
  async beginDelete(tenantId: TenantId, name: string): Promise<VmRow[]> {
    return this.#sql.transaction(async (tx) => {
      const app = await mustBeIdle(tx, tenantId, name);
      await tx.run("UPDATE app SET state = 'deleting' WHERE app_id = ?", [app.appId]);
      await tx.run(
        "UPDATE vm SET wanted = 'deleted', settled = 0, hold_until_ms = 0, revision = revision + 1 WHERE app_id = ? AND wanted <> 'deleted'",
        [app.appId],
      );
      await bumpRoutes(tx);
      return selectVms(tx, "app_id = ? AND settled = 0", [app.appId]);
    });
  }

  /** Frees the names of apps whose last VM is gone, and forgets their environments. */
  async finishDeletes(nowMs: number): Promise<void> {
    await this.#sql.transaction(async (tx) => {
      const deleted = await tx.query<{ app_id: AppId }>(
        "UPDATE app SET state = 'deleted', deleted_at_ms = ? WHERE state = 'deleting' AND NOT EXISTS (SELECT 1 FROM vm WHERE vm.app_id = app.app_id AND vm.settled = 0) RETURNING app_id",
        [nowMs],
      );
      for (const { app_id } of deleted) await forgetEnv(tx, "app_id = ?", [app_id]);
    });
  }

  /** Wants one VM stopped or gone. */
  async wantVm(tenantId: TenantId, vmId: VmId, wanted: Exclude<WantedVmState, "running">): Promise<VmRow> {
    return this.#sql.transaction(async (tx) => {
      await tx.run(
        "UPDATE vm SET wanted = ?, settled = 0, hold_until_ms = 0, revision = revision + 1 WHERE tenant_id = ? AND vm_id = ? AND wanted <> 'deleted' AND wanted <> ?",
        [wanted, tenantId, vmId, wanted],
      );
      await bumpRoutes(tx);
      return mustFindVm(tx, tenantId, vmId);
    });
  }

  /** VMs whose host has not confirmed what is wanted, oldest first. */
  async unsettled(nowMs: number, limit: number): Promise<VmRow[]> {
    return selectVms(this.#sql, "settled = 0 AND hold_until_ms <= ? ORDER BY vm_id LIMIT ?", [nowMs, limit]);
  }

  /** VMs of the app that a newer release replaced and that are not gone yet. */
  async replacedVms(deploymentId: DeploymentId): Promise<VmRow[]> {
    return selectVms(
      this.#sql,
      "app_id = (SELECT app_id FROM deployment WHERE deployment_id = ?) AND deployment_id <> ? AND settled = 0 ORDER BY vm_id",
      [deploymentId, deploymentId],
    );
  }

  /** The host has confirmed what was wanted at `revision`; a newer wish stays open. */
  async settle(vm: VmRow, seen: Vm | undefined): Promise<void> {
    await this.#sql.run(
      "UPDATE vm SET settled = 1, hold_until_ms = 0, last_seen = COALESCE(?, last_seen) WHERE vm_id = ? AND revision = ?",
      [seen ? toBinary(VmSchema, seen) : null, vm.vmId, vm.revision],
    );
  }

  async routeRevision(): Promise<number> {
    return (
      (await this.#sql.one<{ revision: number }>("SELECT revision FROM route_revision WHERE id = 1"))?.revision ?? 0
    );
  }

  /** Every live app with the VMs that serve it. */
  async routes(): Promise<{ readonly revision: number; readonly routes: readonly RouteRow[] }> {
    return this.#sql.transaction(async (tx) => {
      const revision = await tx.one<{ revision: number }>("SELECT revision FROM route_revision WHERE id = 1");
      const rows = await tx.query<{
        name: string;
        app_id: AppId;
        deployment_id: DeploymentId | "";
        port: number | null;
        vm_id: VmId | null;
        ip_address: string | null;
      }>(
        `SELECT a.name, a.app_id, a.deployment_id, d.port, v.vm_id, v.ip_address FROM app a
         LEFT JOIN deployment d ON d.deployment_id = a.deployment_id
         LEFT JOIN vm v ON v.deployment_id = a.deployment_id AND v.wanted = 'running' AND v.ip_address <> ''
         WHERE a.state = 'live' ORDER BY a.name, v.ordinal`,
      );
      const routes = [...Map.groupBy(rows, (row) => row.app_id).values()].flatMap((group) => {
        const [first] = group;
        if (!first) return [];
        return [
          {
            appName: first.name,
            appId: first.app_id,
            deploymentId: first.deployment_id,
            port: first.port ?? 0,
            upstreams: group.flatMap(({ vm_id: vmId, ip_address: ipAddress }) =>
              vmId === null || ipAddress === null ? [] : [{ vmId, ipAddress }],
            ),
          },
        ];
      });
      return { revision: revision?.revision ?? 0, routes };
    });
  }
}

async function mustFind(sql: SqlStatements, tenantId: TenantId, name: string): Promise<AppRow> {
  const [app] = await selectApps(sql, "tenant_id = ? AND name = ? AND deleted_at_ms = 0", [tenantId, name]);
  if (!app) throw notFound(name);
  return app;
}

async function mustFindVm(sql: SqlStatements, tenantId: TenantId, vmId: VmId): Promise<VmRow> {
  const [vm] = await selectVms(sql, "tenant_id = ? AND vm_id = ?", [tenantId, vmId]);
  if (!vm) throw new ServiceError("VM_NOT_FOUND", `the tenant has no VM ${vmId}`);
  return vm;
}

function notFound(name: string): ServiceError {
  return new ServiceError("APP_NOT_FOUND", `the tenant has no app ${name.slice(0, 63)}`);
}

async function mustBeIdle(tx: SqlStatements, tenantId: TenantId, name: string): Promise<AppRow> {
  const app = await mustFind(tx, tenantId, name);
  const open = await tx.one<{ deployment_id: string }>(
    "SELECT deployment_id FROM deployment WHERE app_id = ? AND ended_at_ms = 0 ORDER BY deployment_id LIMIT 1",
    [app.appId],
  );
  if (open) {
    throw new ServiceError("DEPLOYMENT_IN_PROGRESS", `${open.deployment_id} of the app ${name} is under way`, {
      metadata: { deploymentId: open.deployment_id },
    });
  }
  return app;
}

async function holdStopped(tx: SqlStatements, vmId: VmId, holdUntilMs: number): Promise<void> {
  await tx.run(
    "UPDATE vm SET settled = 0, hold_until_ms = ?, revision = revision + 1 WHERE vm_id = ? AND wanted = 'stopped'",
    [holdUntilMs, vmId],
  );
}
