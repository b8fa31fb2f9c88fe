import { join } from "node:path";
import { type AssetId, type Clock, isServiceError, type LeaseId, ServiceError } from "@unkey/base";
import type { Counter, Logger, Metrics } from "@unkey/daemon";
import {
  type Asset,
  type AssetDeclaration,
  type Digest,
  type Lease,
  type Owner,
  toMark,
  toSweep,
} from "./domain/asset.ts";
import { KeyedLock } from "./keyed-lock.ts";
import type { AssetCatalog, AssetQuery, BlobStore, Stager, StagingMethod, Usage } from "./ports.ts";

export interface AssetServiceDeps {
  readonly catalog: AssetCatalog;
  readonly blobs: BlobStore;
  readonly stager: Stager;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly maxAssetBytes: number;
  /** Per tenant; 0 for no limit. The platform has none. */
  readonly tenantQuotaBytes: number;
  readonly gcGraceMs: number;
}

export interface PrepareAssets {
  readonly tenantId: Owner;
  readonly leaseKey: string;
  readonly placements: readonly { readonly assetId: AssetId; readonly fileName: string }[];
  readonly targetDir: string;
  readonly leaseMs: number;
}

export interface StagedAsset {
  readonly assetId: AssetId;
  readonly path: string;
  readonly method: StagingMethod;
}

export interface Collection {
  readonly marked: readonly AssetId[];
  readonly swept: readonly AssetId[];
  readonly freedBytes: number;
}

const maxConcurrentUploads = 16;

export class AssetService {
  readonly #deps: AssetServiceDeps;
  /**
   * Held while a blob becomes part of the store and its row is written, and while a blob without rows is deleted: each
   * would otherwise act on what the other is about to change. This process alone owns the store.
   */
  readonly #blobLock = new KeyedLock();
  /** Blobs without a row that the previous pass saw; only those may go, so that each gets one pass of delay. */
  #orphans = new Set<Digest>();
  #uploads = 0;
  readonly #freed: Counter;

  constructor(deps: AssetServiceDeps) {
    this.#deps = deps;
    this.#freed = deps.metrics.counter("unkey_assets_freed_bytes_total", "Bytes that collection has given back.");
    deps.metrics.gauge("unkey_assets_uploads", "Uploads under way.").set(0);
  }

  /**
   * Brings the catalog and the store together after a crash or a damaged disk: an asset whose blob is missing or cut
   * short can no longer be used. Blobs without a row are left to collection.
   */
  async heal(signal: AbortSignal): Promise<void> {
    const { catalog, blobs, log } = this.#deps;
    for (const [digest, sizeBytes] of await catalog.digests()) {
      signal.throwIfAborted();
      const actual = await blobs.sizeOf(digest);
      if (actual === sizeBytes) continue;
      const assets = await catalog.markCorrupt(digest);
      log.error("stored bytes are missing or cut short", { digest, sizeBytes, actual: actual ?? null, assets });
    }
  }

  /** Stores a blob and its asset. A crash before the row leaves a blob that collection removes, never a row without one. */
  async upload(declaration: AssetDeclaration, chunks: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<Asset> {
    const { blobs, catalog, maxAssetBytes } = this.#deps;
    const { digest, sizeBytes, owner } = declaration;
    if (sizeBytes > maxAssetBytes) {
      throw new ServiceError("ASSET_TOO_LARGE", `${sizeBytes} bytes are more than the allowed ${maxAssetBytes}`, {
        metadata: { maxBytes: String(maxAssetBytes) },
      });
    }
    if (this.#uploads >= maxConcurrentUploads) {
      throw new ServiceError("ASSET_STORE_BUSY", `${maxConcurrentUploads} uploads are under way`);
    }
    // Early, so that a tenant over its quota is told before it sends gigabytes; `add` decides.
    const quotaBytes = this.#quotaOf(owner);
    const { storedBytes } = await catalog.usage(owner);
    if (quotaBytes > 0 && storedBytes >= quotaBytes) {
      throw new ServiceError("ASSET_QUOTA_EXCEEDED", `${storedBytes} of ${quotaBytes} bytes are in use`);
    }
    this.#countUploads(1);
    try {
      await using received = await blobs.receive({ digest, sizeBytes }, chunks, signal);
      return await this.#blobLock.run(digest, async () => {
        // Present when the upload began, it may have been collected since.
        await received.commit();
        if ((await blobs.sizeOf(digest)) !== sizeBytes) {
          throw new ServiceError("ABORTED", "the stored bytes were collected during the upload");
        }
        return catalog.add(declaration, this.#deps.clock.nowMs(), quotaBytes);
      });
    } finally {
      this.#countUploads(-1);
    }
  }

  /** Another asset of content that the owner already has. */
  async register(declaration: AssetDeclaration): Promise<Asset> {
    const { catalog, blobs, clock } = this.#deps;
    const { owner, digest } = declaration;
    return this.#blobLock.run(digest, async () => {
      // Knowing a digest is not having the bytes: a tenant must not get at another's content by naming it.
      const sizeBytes = (await catalog.owns(owner, digest)) ? await blobs.sizeOf(digest) : undefined;
      if (sizeBytes === undefined) throw new ServiceError("ASSET_NOT_FOUND", `the tenant owns no asset of ${digest}`);
      if (sizeBytes !== declaration.sizeBytes) {
        throw new ServiceError("ASSET_SIZE_MISMATCH", `${digest} is ${sizeBytes} bytes long`);
      }
      return catalog.add(declaration, clock.nowMs(), this.#quotaOf(owner));
    });
  }

  async get(viewer: Owner, id: AssetId): Promise<Asset> {
    const asset = await this.#deps.catalog.find(viewer, id, this.#deps.clock.nowMs());
    if (asset === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${id}`);
    return asset;
  }

  list(query: AssetQuery): Promise<Asset[]> {
    return this.#deps.catalog.list(query, this.#deps.clock.nowMs());
  }

  async *download(viewer: Owner, id: AssetId, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const asset = await this.get(viewer, id);
    if (asset.state === "error") throw new ServiceError("ASSET_NOT_AVAILABLE", `asset ${id} is in state error`);
    if (offset > asset.sizeBytes) {
      throw new ServiceError("INVALID_REQUEST", `offset: ${offset} lies beyond the end at ${asset.sizeBytes}`);
    }
    try {
      yield* this.#deps.blobs.read(asset.digest, offset, signal);
    } catch (error) {
      throw await this.#noteCorruption(asset.digest, error);
    }
  }

  /** Stages assets for a VM; the lease answered keeps them from collection. */
  async prepare(
    request: PrepareAssets,
    signal: AbortSignal,
  ): Promise<{ readonly lease: Lease; readonly staged: readonly StagedAsset[] }> {
    const { catalog, blobs, stager, clock, log } = this.#deps;
    const { tenantId, leaseKey, placements, targetDir, leaseMs } = request;
    if (new Set(placements.map(({ fileName }) => fileName)).size !== placements.length) {
      throw new ServiceError("INVALID_REQUEST", "placements: two of them have the same file name");
    }
    const nowMs = clock.nowMs();
    // Lease first: a crash before staging leaves a lease that expires, never a file that nobody counts.
    const { lease, assets } = await catalog.acquireLease({
      tenantId,
      key: leaseKey,
      assetIds: placements.map(({ assetId }) => assetId),
      nowMs,
      expiresAtMs: nowMs + leaseMs,
    });
    try {
      const digests = new Map(assets.map((asset) => [asset.id, asset.digest]));
      const wanted = [];
      for (const { assetId, fileName } of placements) {
        const digest = digests.get(assetId);
        if (digest === undefined) throw new Error(`the lease does not hold ${assetId}`);
        const blobPath = await blobs.verified(digest, signal).catch(async (error: unknown) => {
          throw await this.#noteCorruption(digest, error);
        });
        wanted.push({ blobPath, fileName });
      }
      const methods = await stager.stage(targetDir, wanted, signal);
      const staged = placements.map(({ assetId, fileName }, index) => ({
        assetId,
        path: join(targetDir, fileName),
        method: methods[index] ?? "copy",
      }));
      return { lease, staged };
    } catch (error) {
      await catalog
        .releaseLease(tenantId, lease.id)
        .catch((cause: unknown) => log.warn("lease left to expire", { leaseId: lease.id, error: cause }));
      throw error;
    }
  }

  async renewLease(tenantId: Owner, id: LeaseId, leaseMs: number): Promise<Lease> {
    const nowMs = this.#deps.clock.nowMs();
    const lease = await this.#deps.catalog.renewLease(tenantId, id, nowMs, nowMs + leaseMs);
    if (lease === undefined) throw new ServiceError("LEASE_NOT_FOUND", `the lease ${id} has ended`);
    return lease;
  }

  releaseLease(tenantId: Owner, id: LeaseId): Promise<void> {
    return this.#deps.catalog.releaseLease(tenantId, id);
  }

  leases(tenantId: Owner, assetId: AssetId | undefined): Promise<Lease[]> {
    return this.#deps.catalog.leases(tenantId, assetId, this.#deps.clock.nowMs());
  }

  delete(owner: Owner, id: AssetId): Promise<Asset> {
    return this.#deps.catalog.beginDelete(owner, id, this.#deps.clock.nowMs());
  }

  async usage(owner: Owner): Promise<Usage & { readonly quotaBytes: number }> {
    return { ...(await this.#deps.catalog.usage(owner)), quotaBytes: this.#quotaOf(owner) };
  }

  /** One collection pass: sweep what an earlier pass marked, mark what is garbage now, drop blobs without rows. */
  async collect(signal: AbortSignal, options: { readonly dryRun?: boolean } = {}): Promise<Collection> {
    const { catalog, clock, gcGraceMs, log } = this.#deps;
    const nowMs = clock.nowMs();
    if (options.dryRun) {
      const rules = { pass: Number.MAX_SAFE_INTEGER, nowMs, graceMs: gcGraceMs };
      const assets = await catalog.candidates(rules);
      const swept = toSweep(assets, rules);
      const freedBytes = swept.reduce((sum, asset) => sum + asset.sizeBytes, 0);
      return { marked: idsOf(toMark(assets, rules)), swept: idsOf(swept), freedBytes };
    }
    const rules = { pass: await catalog.beginPass(nowMs), nowMs, graceMs: gcGraceMs };
    const assets = await catalog.candidates(rules);
    const swept: AssetId[] = [];
    let freedBytes = 0;
    for (const { id, digest } of toSweep(assets, rules)) {
      signal.throwIfAborted();
      if (!(await catalog.remove(id, rules))) continue;
      swept.push(id);
      freedBytes += await this.#deleteUnreferenced(digest);
    }
    const marked = idsOf(toMark(assets, rules));
    await catalog.mark(marked, rules.pass);
    freedBytes += await this.#collectOrphans(signal);
    this.#freed.inc({}, freedBytes);
    if (swept.length > 0 || marked.length > 0 || freedBytes > 0) {
      log.info("collected", { marked: marked.length, swept: swept.length, freedBytes });
    }
    return { marked, swept, freedBytes };
  }

  /** Blobs that no row refers to: what a crash left between writing a blob and its row, or between row and blob. */
  async #collectOrphans(signal: AbortSignal): Promise<number> {
    const { catalog, blobs } = this.#deps;
    const found = new Set<Digest>();
    let freedBytes = 0;
    for await (const digest of blobs.list()) {
      signal.throwIfAborted();
      if (await catalog.isReferenced(digest)) continue;
      if (this.#orphans.has(digest)) freedBytes += await this.#deleteUnreferenced(digest);
      else found.add(digest);
    }
    this.#orphans = found;
    return freedBytes;
  }

  #deleteUnreferenced(digest: Digest): Promise<number> {
    const { catalog, blobs } = this.#deps;
    return this.#blobLock.run(digest, async () => ((await catalog.isReferenced(digest)) ? 0 : blobs.delete(digest)));
  }

  async #noteCorruption(digest: Digest, error: unknown): Promise<unknown> {
    if (isServiceError(error, "ASSET_CORRUPT")) {
      const assets = await this.#deps.catalog.markCorrupt(digest);
      this.#deps.log.error("stored bytes are wrong", { digest, assets });
    }
    return error;
  }

  #quotaOf(owner: Owner): number {
    return owner === "" ? 0 : this.#deps.tenantQuotaBytes;
  }

  #countUploads(by: 1 | -1): void {
    this.#uploads += by;
    this.#deps.metrics.gauge("unkey_assets_uploads", "Uploads under way.").set(this.#uploads);
  }
}

function idsOf(assets: readonly Asset[]): AssetId[] {
  return assets.map((asset) => asset.id);
}
