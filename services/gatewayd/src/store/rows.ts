import { fromBinary } from "@bufbuild/protobuf";
import { type ProcessConfig, ProcessConfigSchema } from "@unkey/api/common";
import {
  type CreateDeploymentRequest,
  CreateDeploymentRequestSchema,
  type DeploymentFailure,
  DeploymentFailureSchema,
} from "@unkey/api/gateway";
import { type Vm, VmSchema } from "@unkey/api/metal";
import type { AppId, DeploymentId, TenantId, VmId } from "@unkey/base";
import type { SqlStatements } from "@unkey/sql";
import type { DeploymentState, StepKind, StepState } from "../domain/deployment.ts";

export interface AppRow {
  readonly appId: AppId;
  readonly tenantId: TenantId;
  readonly name: string;
  /** `deleting` until the last of its VMs is gone. */
  readonly state: "live" | "deleting" | "deleted";
  /** The deployment that it serves; empty before the first success. */
  readonly deploymentId: DeploymentId | "";
  readonly createdAtMs: number;
}

export interface StepRow {
  readonly kind: StepKind;
  readonly state: StepState;
  readonly startedAtMs: number;
  readonly endedAtMs: number;
  readonly detail: string;
  readonly attempts: number;
}

/** What is wanted of a VM. Until `settled` its host has not confirmed it, and a pass keeps asking. */
export type WantedVmState = "running" | "stopped" | "deleted";

export interface VmRow {
  readonly vmId: VmId;
  readonly tenantId: TenantId;
  readonly appId: AppId;
  readonly deploymentId: DeploymentId;
  readonly ordinal: number;
  readonly hostId: string;
  readonly reservationId: string;
  readonly ipAddress: string;
  readonly wanted: WantedVmState;
  readonly settled: boolean;
  /** Grows whenever what is wanted changes. */
  readonly revision: number;
  /** The VM as its host last described it. */
  readonly lastSeen?: Vm;
  readonly createdAtMs: number;
}

export interface DeploymentRow {
  readonly deploymentId: DeploymentId;
  readonly tenantId: TenantId;
  readonly appId: AppId;
  readonly appName: string;
  readonly state: DeploymentState;
  /** As it was asked for, without credentials. */
  readonly request: CreateDeploymentRequest;
  readonly withCredentials: boolean;
  readonly buildId: string;
  readonly imageDigest: string;
  /** What to call the image where the request says it badly; may be empty. */
  readonly imageAsked: string;
  readonly rootfsAssetId: string;
  /** How the image wants to be run; from the build. */
  readonly process?: ProcessConfig;
  readonly port: number;
  readonly failure?: DeploymentFailure;
  readonly cancelRequested: boolean;
  readonly revision: number;
  readonly createdAtMs: number;
  readonly endedAtMs: number;
  readonly steps: readonly StepRow[];
  readonly vms: readonly VmRow[];
}

interface AppColumns {
  app_id: AppId;
  tenant_id: TenantId;
  name: string;
  state: AppRow["state"];
  deployment_id: DeploymentId | "";
  created_at_ms: number;
}

export function toApp(row: AppColumns): AppRow {
  return {
    appId: row.app_id,
    tenantId: row.tenant_id,
    name: row.name,
    state: row.state,
    deploymentId: row.deployment_id,
    createdAtMs: row.created_at_ms,
  };
}

interface VmColumns {
  vm_id: VmId;
  tenant_id: TenantId;
  app_id: AppId;
  deployment_id: DeploymentId;
  ordinal: number;
  host_id: string;
  reservation_id: string;
  ip_address: string;
  wanted: WantedVmState;
  settled: number;
  revision: number;
  last_seen: Uint8Array | null;
  created_at_ms: number;
}

function toVm(row: VmColumns): VmRow {
  return {
    vmId: row.vm_id,
    tenantId: row.tenant_id,
    appId: row.app_id,
    deploymentId: row.deployment_id,
    ordinal: row.ordinal,
    hostId: row.host_id,
    reservationId: row.reservation_id,
    ipAddress: row.ip_address,
    wanted: row.wanted,
    settled: row.settled === 1,
    revision: row.revision,
    ...(row.last_seen === null ? {} : { lastSeen: fromBinary(VmSchema, row.last_seen) }),
    createdAtMs: row.created_at_ms,
  };
}

interface DeploymentColumns {
  deployment_id: DeploymentId;
  tenant_id: TenantId;
  app_id: AppId;
  app_name: string;
  state: DeploymentState;
  request: Uint8Array;
  with_credentials: number;
  build_id: string;
  image_digest: string;
  image_asked: string;
  rootfs_asset_id: string;
  process: Uint8Array | null;
  port: number;
  failure: Uint8Array | null;
  cancel_requested: number;
  revision: number;
  created_at_ms: number;
  ended_at_ms: number;
}

interface StepColumns {
  deployment_id: DeploymentId;
  kind: StepKind;
  state: StepState;
  started_at_ms: number;
  ended_at_ms: number;
  detail: string;
  attempts: number;
}

type Params = readonly (string | number)[];

/** Apps that fit `where`, in its order. */
export async function selectApps(sql: SqlStatements, where: string, params: Params): Promise<AppRow[]> {
  return (await sql.query<AppColumns>(`SELECT * FROM app WHERE ${where}`, params)).map(toApp);
}

/** VMs that fit `where`, in its order. */
export async function selectVms(sql: SqlStatements, where: string, params: Params): Promise<VmRow[]> {
  return (await sql.query<VmColumns>(`SELECT * FROM vm WHERE ${where}`, params)).map(toVm);
}

/** Deployments that fit `where`, in its order, with their steps and VMs. */
export async function selectDeployments(sql: SqlStatements, where: string, params: Params): Promise<DeploymentRow[]> {
  const rows = await sql.query<DeploymentColumns>(
    `SELECT d.*, a.name AS app_name FROM deployment d JOIN app a ON a.app_id = d.app_id WHERE ${where}`,
    params,
  );
  if (rows.length === 0) return [];
  const ids = rows.map((row) => row.deployment_id);
  const marks = ids.map(() => "?").join(", ");
  const steps = await sql.query<StepColumns>(
    `SELECT * FROM deployment_step WHERE deployment_id IN (${marks}) ORDER BY deployment_id, position`,
    ids,
  );
  const vms = await selectVms(sql, `deployment_id IN (${marks}) ORDER BY ordinal, vm_id`, ids);
  const stepsOf = Map.groupBy(steps, (step) => step.deployment_id);
  const vmsOf = Map.groupBy(vms, (vm) => vm.deploymentId);
  return rows.map((row) => ({
    deploymentId: row.deployment_id,
    tenantId: row.tenant_id,
    appId: row.app_id,
    appName: row.app_name,
    state: row.state,
    request: fromBinary(CreateDeploymentRequestSchema, row.request),
    withCredentials: row.with_credentials === 1,
    buildId: row.build_id,
    imageDigest: row.image_digest,
    imageAsked: row.image_asked,
    rootfsAssetId: row.rootfs_asset_id,
    ...(row.process === null ? {} : { process: fromBinary(ProcessConfigSchema, row.process) }),
    port: row.port,
    ...(row.failure === null ? {} : { failure: fromBinary(DeploymentFailureSchema, row.failure) }),
    cancelRequested: row.cancel_requested === 1,
    revision: row.revision,
    createdAtMs: row.created_at_ms,
    endedAtMs: row.ended_at_ms,
    steps: (stepsOf.get(row.deployment_id) ?? []).map(toStep),
    vms: vmsOf.get(row.deployment_id) ?? [],
  }));
}

function toStep(row: StepColumns): StepRow {
  return {
    kind: row.kind,
    state: row.state,
    startedAtMs: row.started_at_ms,
    endedAtMs: row.ended_at_ms,
    detail: row.detail,
    attempts: row.attempts,
  };
}
