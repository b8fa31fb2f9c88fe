import { create } from "@bufbuild/protobuf";
import type { ImageSource } from "@unkey/api/builder";
import {
  type ApiKey,
  ApiKeySchema,
  type App,
  AppSchema,
  AppState,
  type AuditEvent,
  AuditEventSchema,
  type Deployment,
  DeploymentSchema,
  DeploymentState,
  StepState,
} from "@unkey/api/gateway";
import { type Vm, VmState } from "@unkey/api/metal";
import type { DeploymentState as StoredDeploymentState, StepState as StoredStepState } from "../domain/deployment.ts";
import type { StoredRecord } from "../store/audit-store.ts";
import type { ApiKeyRow } from "../store/key-store.ts";
import type { AppRow, DeploymentRow, VmRow } from "../store/rows.ts";

/** Rows as callers see them. */

export type UrlOf = (appName: string) => string;

const deploymentStates: Readonly<Record<StoredDeploymentState, DeploymentState>> = {
  queued: DeploymentState.RUNNING,
  running: DeploymentState.RUNNING,
  failing: DeploymentState.RUNNING,
  cancelling: DeploymentState.RUNNING,
  succeeded: DeploymentState.SUCCEEDED,
  failed: DeploymentState.FAILED,
  cancelled: DeploymentState.CANCELLED,
};

const stepStates: Readonly<Record<StoredStepState, StepState>> = {
  pending: StepState.PENDING,
  running: StepState.RUNNING,
  done: StepState.DONE,
  failed: StepState.FAILED,
  undone: StepState.UNDONE,
  skipped: StepState.SKIPPED,
};

export function deploymentView(row: DeploymentRow, urlOf: UrlOf): Deployment {
  const serves = row.steps.some((step) => step.kind === "route" && step.state === "done");
  return create(DeploymentSchema, {
    deploymentId: row.deploymentId,
    tenantId: row.tenantId,
    app: row.appName,
    appId: row.appId,
    state: deploymentStates[row.state],
    steps: row.steps.map((step) => ({
      kind: step.kind,
      state: stepStates[step.state],
      startedAtMs: BigInt(step.startedAtMs),
      endedAtMs: BigInt(step.endedAtMs),
      detail: step.detail,
      attempts: step.attempts,
    })),
    image: row.imageAsked || imageName(row.request.image),
    imageDigest: row.imageDigest,
    buildId: row.buildId,
    vmIds: row.vms.map((vm) => vm.vmId),
    url: serves ? urlOf(row.appName) : "",
    createdAtMs: BigInt(row.createdAtMs),
    endedAtMs: BigInt(row.endedAtMs),
    port: row.port,
    pushedImage: row.request.image?.source.case === "pushed" ? imageName(row.request.image) : "",
    ...(row.failure ? { failure: row.failure } : {}),
    ...(row.request.resources ? { resources: row.request.resources } : {}),
  });
}

/** `vms` are the VMs of the release that the app serves, with what their hosts say of them. */
export function appView(
  app: AppRow,
  release: DeploymentRow | undefined,
  vms: readonly { readonly row: VmRow; readonly vm: Vm }[],
  urlOf: UrlOf,
): App {
  return create(AppSchema, {
    appId: app.appId,
    tenantId: app.tenantId,
    name: app.name,
    state: appState(app, vms),
    url: app.deploymentId === "" ? "" : urlOf(app.name),
    deploymentId: app.deploymentId,
    image: release?.imageAsked || imageName(release?.request.image),
    vmIds: vms.map(({ row }) => row.vmId),
    createdAtMs: BigInt(app.createdAtMs),
  });
}

function appState(app: AppRow, vms: readonly { readonly row: VmRow; readonly vm: Vm }[]): AppState {
  if (app.state === "deleted") return AppState.DELETED;
  if (app.deploymentId === "") return AppState.EMPTY;
  const wanted = vms.filter(({ row }) => row.wanted === "running");
  if (wanted.length === 0) return AppState.STOPPED;
  // A host that does not answer now is no proof that the VM is down.
  const up: readonly VmState[] = [VmState.RUNNING, VmState.UNSPECIFIED];
  return wanted.some(({ vm }) => up.includes(vm.state)) ? AppState.SERVING : AppState.DOWN;
}

export function apiKeyView(key: ApiKeyRow): ApiKey {
  return create(ApiKeySchema, {
    apiKeyId: key.apiKeyId,
    tenantId: key.tenantId,
    name: key.name,
    scopes: [...key.scopes],
    createdAtMs: BigInt(key.createdAtMs),
    expiresAtMs: BigInt(key.expiresAtMs),
    revokedAtMs: BigInt(key.revokedAtMs),
  });
}

export function auditView(record: StoredRecord): AuditEvent {
  const { eventId, actor, action, target, outcome, requestId, atMs } = record;
  return create(AuditEventSchema, { eventId, actor, action, target, outcome, requestId, atMs: BigInt(atMs) });
}

/** The image as it was asked for. */
function imageName(image: ImageSource | undefined): string {
  const source = image?.source;
  switch (source?.case) {
    case "pushed":
      return `${source.value.repository}${source.value.tagOrDigest.includes(":") ? "@" : ":"}${source.value.tagOrDigest}`;
    default:
      return source?.value ?? "";
  }
}
