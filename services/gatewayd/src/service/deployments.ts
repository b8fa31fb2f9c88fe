import { createHash } from "node:crypto";
import { clone, create, toBinary } from "@bufbuild/protobuf";
import { ResourcesSchema } from "@unkey/api/common";
import { type CreateDeploymentRequest, CreateDeploymentRequestSchema } from "@unkey/api/gateway";
import { type Clock, type DeploymentId, gib, mib, newId, ServiceError, type TenantId } from "@unkey/base";
import type { Platform } from "../adapters/platform.ts";
import type { CredentialVault } from "../deploy/build-step.ts";
import type { Changes } from "../deploy/changes.ts";
import type { DeploymentExecutor } from "../deploy/executor.ts";
import { refuseImpossible, roomOf } from "../deploy/place-step.ts";
import { isTerminal } from "../domain/deployment.ts";
import { appNameOf } from "../domain/release-plan.ts";
import type { PushedImages } from "../registry/pushed-images.ts";
import { type DeploymentStore, idempotencyLifetimeMs } from "../store/deployment-store.ts";
import type { DeploymentRow } from "../store/rows.ts";
import { nextPageToken, readPage } from "./page.ts";

/** The contract's defaults for a deployment that does not say what its VMs are given. */
const defaultResources = { vcpuCount: 1, memoryBytes: BigInt(256 * mib), diskBytes: BigInt(gib) };
/** Deployments that a tenant may have under way at once, queued ones included. */
const maxOpen = 100;
const lookAgainMs = 1000;

export interface DeploymentServiceDeps {
  readonly store: DeploymentStore;
  readonly platform: Platform;
  readonly executor: DeploymentExecutor;
  readonly changes: Changes;
  readonly vault: CredentialVault;
  readonly images: Pick<PushedImages, "resolve">;
  readonly clock: Clock;
}

export class DeploymentService {
  readonly #deps: DeploymentServiceDeps;

  constructor(deps: DeploymentServiceDeps) {
    this.#deps = deps;
  }

  /** Accepts a deployment; the executor does the rest. */
  async create(
    tenantId: TenantId,
    request: CreateDeploymentRequest,
    idempotencyKey: string | undefined,
  ): Promise<DeploymentRow> {
    const { store, platform, executor, vault, images, clock } = this.#deps;
    const nowMs = clock.nowMs();
    const idempotency =
      idempotencyKey === undefined ? undefined : { key: idempotencyKey, requestSha256: requestDigest(request) };
    // Before the image is looked up: a repeat means what the first request meant, whatever its tag points to now.
    const earlier = idempotency && (await store.repeated(tenantId, idempotency, nowMs));
    if (earlier !== undefined) return store.get(tenantId, earlier);
    const pushed = await images.resolve(tenantId, request.image, request.credentials !== undefined);
    const credentials = pushed ? undefined : request.credentials;
    const accepted = clone(CreateDeploymentRequestSchema, request);
    delete accepted.credentials;
    if (pushed) accepted.image = pushed;
    accepted.resources ??= create(ResourcesSchema, defaultResources);
    accepted.vmCount ||= 1;
    const appName = appNameFor(accepted);
    // Hosts that do not answer are asked again when the deployment is placed.
    const hosts = (await platform.hosts.reachable()).map(roomOf);
    if (hosts.length > 0) refuseImpossible(hosts, accepted.resources);

    const newDeploymentId = newId("dep", nowMs);
    // Before the row: once it is there, any executor of this process may take it up and look for the login.
    if (credentials) vault.set(newDeploymentId, credentials);
    try {
      const { deploymentId, created } = await store.create({
        tenantId,
        deploymentId: newDeploymentId,
        appId: newId("app", nowMs),
        appName,
        request: accepted,
        withCredentials: credentials !== undefined,
        ...(pushed ? { imageAsked: askedFor(request) } : {}),
        ...(idempotency === undefined ? {} : { idempotency }),
        nowMs,
        maxOpen,
      });
      if (!created) vault.delete(newDeploymentId);
      executor.wake();
      return await store.get(tenantId, deploymentId);
    } catch (error) {
      vault.delete(newDeploymentId);
      throw error;
    }
  }

  get(tenantId: TenantId, deploymentId: DeploymentId): Promise<DeploymentRow> {
    return this.#deps.store.get(tenantId, deploymentId);
  }

  async list(
    tenantId: TenantId,
    request: { readonly app: string; readonly pageSize: number; readonly pageToken: string },
  ) {
    const page = readPage(request);
    const rows = await this.#deps.store.list({
      tenantId,
      appName: request.app,
      limit: page.limit,
      beforeId: page.after,
    });
    return { rows, nextPageToken: nextPageToken(page, rows, (row) => row.deploymentId) };
  }

  /** The deployment as it is, then after each change, until it is terminal. */
  async *watch(tenantId: TenantId, deploymentId: DeploymentId, signal: AbortSignal): AsyncGenerator<DeploymentRow> {
    const { store, changes } = this.#deps;
    for (let shown = 0; ; ) {
      signal.throwIfAborted();
      const changed = changes.next(deploymentId, lookAgainMs, signal);
      const row = await store.get(tenantId, deploymentId);
      if (row.revision !== shown) yield row;
      shown = row.revision;
      if (isTerminal(row.state)) return;
      await changed;
    }
  }

  async cancel(tenantId: TenantId, deploymentId: DeploymentId): Promise<DeploymentRow> {
    const { store, executor, changes, clock } = this.#deps;
    await store.requestCancel(tenantId, deploymentId, clock.nowMs());
    executor.recheck(deploymentId);
    executor.wake();
    changes.notify(deploymentId);
    return store.get(tenantId, deploymentId);
  }

  /** Forgets idempotency keys that have had their time. */
  async forgetOldKeys(): Promise<void> {
    const { store, clock } = this.#deps;
    await store.forgetIdempotencyBefore(clock.nowMs() - idempotencyLifetimeMs);
  }
}

function appNameFor(request: CreateDeploymentRequest): string {
  if (request.app !== "") return request.app;
  const { source } = request.image ?? {};
  const image = source?.case === "pushed" ? source.value.repository : source?.case === "reference" ? source.value : "";
  if (image === "") {
    throw new ServiceError("APP_NAME_NEEDED", "app: an uploaded image has no name to call the app by");
  }
  const name = appNameOf(image);
  if (name === undefined) throw new ServiceError("APP_NAME_NEEDED", "app: the image's name yields no name for the app");
  return name;
}

/** A pushed image as the caller named it: its tag is not in the accepted request any more. */
function askedFor(request: CreateDeploymentRequest): string {
  const { source } = request.image ?? {};
  if (source?.case !== "pushed") return source?.value ?? "";
  const { repository, tagOrDigest } = source.value;
  return `${repository}${tagOrDigest.includes(":") ? "@" : ":"}${tagOrDigest}`;
}

/** What a repeat of the request has to match. The password counts only by its presence: nothing derived from it is stored. */
function requestDigest(request: CreateDeploymentRequest): Uint8Array {
  const hashed = clone(CreateDeploymentRequestSchema, request);
  if (hashed.credentials) hashed.credentials.password = hashed.credentials.password === "" ? "" : "given";
  return createHash("sha256").update(toBinary(CreateDeploymentRequestSchema, hashed)).digest();
}

const keyPattern = /^[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?$/;

/** The Idempotency-Key header's value. Throws INVALID_REQUEST. */
export function readIdempotencyKey(headers: Headers): string | undefined {
  const value = headers.get("idempotency-key");
  if (value === null) return undefined;
  if (keyPattern.test(value)) return value;
  throw new ServiceError("INVALID_REQUEST", "Idempotency-Key: must be 1 to 128 printable characters");
}
