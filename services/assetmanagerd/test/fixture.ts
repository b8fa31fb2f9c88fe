import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Client } from "@connectrpc/connect";
import { AssetKind, AssetService as AssetServiceDesc, type UploadHeader } from "@unkey/api/asset";
import { type Clock, type ErrorReason, isServiceError, newId, systemClock, type TenantId } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { inMemoryClient } from "@unkey/rpc";
import { DirectoryStager } from "../src/adapters/directory-stager.ts";
import { DiskBlobStore } from "../src/adapters/disk-blob-store.ts";
import { DiskIncomingFiles } from "../src/adapters/incoming-files.ts";
import { openSqlCatalog } from "../src/adapters/sql-catalog.ts";
import {
  type AssetManager,
  type AssetManagerLimits,
  type AssetManagerParts,
  createAssetManager,
} from "../src/asset-manager.ts";
import type { Digest } from "../src/domain/asset.ts";
import { assetHandlers } from "../src/handlers.ts";
import type { Catalog } from "../src/ports.ts";

export const graceMs = 60_000;
export const uploadLifetimeMs = 3_600_000;

export function digestOf(content: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(content).digest("hex")}`;
}

export interface Fixture extends AsyncDisposable {
  readonly dir: string;
  /** Where staging is allowed. */
  readonly jails: string;
  /** Where files are taken from. */
  readonly intake: string;
  readonly manager: AssetManager;
  readonly parts: AssetManagerParts;
  readonly blobs: DiskBlobStore;
  readonly catalog: Catalog;
  readonly metrics: Metrics;
  readonly tenantId: TenantId;
  readonly lines: string[];
  advance(ms: number): void;
  /** The RPCs as a service calls them for itself. */
  as(service: "gatewayd" | "builderd" | "metald" | "operator"): Client<typeof AssetServiceDesc>;
  /** The RPCs as `service` calls them on behalf of a tenant. */
  actingFor(tenantId: TenantId, service: "gatewayd" | "builderd" | "metald"): Client<typeof AssetServiceDesc>;
  blobPath(digest: Digest): string;
}

/** assetmanagerd's own parts over real files, behind its RPCs, with a clock that the test moves. */
export async function openFixture(
  options: { readonly dir?: string } & Partial<AssetManagerParts & AssetManagerLimits> = {},
): Promise<Fixture> {
  await using stack = new AsyncDisposableStack();
  const dir = options.dir ?? mkdtempSync(join(tmpdir(), "assets-"));
  if (options.dir === undefined) stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const jails = join(dir, "jails");
  const intake = join(dir, "intake");
  for (const path of [jails, intake]) mkdirSync(path, { recursive: true });
  let offsetMs = 0;
  const clock: Clock = { ...systemClock, nowMs: () => Date.now() + offsetMs };
  const lines: string[] = [];
  const catalog = stack.use(await openSqlCatalog(join(dir, "assets.db")));
  const blobs = await DiskBlobStore.open(join(dir, "blobs"));
  const metrics = new Metrics();
  const parts = {
    catalog,
    store: blobs,
    incoming: await DiskIncomingFiles.open(join(dir, "blobs"), [intake]),
    stager: new DirectoryStager([jails]),
    clock,
    log: createLogger({ level: "debug", write: (line) => lines.push(line) }),
    metrics,
    builds: undefined,
    ...options,
  };
  const manager = createAssetManager(parts, {
    maxAssetBytes: 64 * 1024 * 1024,
    tenantQuotaBytes: 0,
    tenantQuotaAssets: 0,
    uploadLifetimeMs,
    gcGraceMs: graceMs,
    scrubBytesPerSecond: 1024 ** 3,
    scrubRoundMs: 3_600_000,
    ...options,
  });
  await manager.recover(new AbortController().signal);
  const routes = (router: Parameters<Parameters<typeof inMemoryClient>[1]["routes"]>[0]) =>
    void router.service(AssetServiceDesc, assetHandlers(manager));
  const owned = stack.move();
  return {
    dir,
    jails,
    intake,
    manager,
    parts,
    blobs,
    catalog,
    metrics,
    tenantId: newId("tenant"),
    lines,
    advance: (ms) => void (offsetMs += ms),
    as: (name) => inMemoryClient(AssetServiceDesc, { routes, caller: { service: name } }),
    actingFor: (tenantId, name) =>
      inMemoryClient(AssetServiceDesc, {
        routes,
        caller: { service: name, principal: { tenantId, subject: "key_1", roles: [], requestId: "req_1" } },
      }),
    blobPath: (digest) => join(dir, "blobs", "sha256", digest.slice(7, 9), digest.slice(9)),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** The messages of an upload of `content`, in chunks of a few bytes. */
export async function* uploadOf(content: Uint8Array, header: Partial<UploadHeader> = {}) {
  const {
    tenantId = "",
    name = "an asset",
    kind = AssetKind.ROOTFS,
    labels = {},
    attachedTo = "",
    keep = false,
  } = header;
  const digest = header.digest ?? digestOf(content);
  const sizeBytes = header.sizeBytes ?? BigInt(content.length);
  yield await Promise.resolve({
    part: { case: "header" as const, value: { tenantId, name, kind, labels, digest, sizeBytes, attachedTo, keep } },
  });
  for (let at = 0; at < content.length; at += 7) {
    yield { part: { case: "chunk" as const, value: content.subarray(at, at + 7) } };
  }
}

export const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

export async function rejectsWith(call: Promise<unknown>, reason: ErrorReason, message?: RegExp): Promise<void> {
  await assert.rejects(call, (error: unknown) => {
    assert.ok(isServiceError(error), String(error));
    assert.equal(error.reason, reason, error.message);
    if (message) assert.match(error.message, message);
    return true;
  });
}

export async function contentOf(messages: AsyncIterable<{ readonly chunk: Uint8Array }>): Promise<string> {
  const parts: Uint8Array[] = [];
  for await (const { chunk } of messages) parts.push(chunk);
  return Buffer.concat(parts).toString();
}

export function prepare(
  assets: Fixture,
  assetId: string,
  options: { key?: string; dir?: string; leaseMs?: number } = {},
) {
  return assets.as("metald").prepareAssets({
    tenantId: assets.tenantId,
    leaseKey: options.key ?? "vm_1",
    placements: [{ assetId, fileName: "rootfs" }],
    targetDir: options.dir ?? join(assets.jails, "vm_1"),
    leaseMs: BigInt(options.leaseMs ?? 30_000),
  });
}
