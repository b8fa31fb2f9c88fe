import { join } from "node:path";
import { type AssetId, type Clock, type LeaseId, ServiceError } from "@unkey/base";
import type { Counter, Logger, Metrics } from "@unkey/daemon";
import type { Digest, Lease, Owner } from "./domain/asset.ts";
import type { LeaseCatalog, Stager, StagingMethod } from "./ports.ts";
import type { StoredBlobs } from "./stored-blobs.ts";

export interface StagingDeps {
  readonly leases: LeaseCatalog;
  readonly stored: StoredBlobs;
  readonly stager: Stager;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
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
  readonly digest: Digest;
}

/** Assets on their way into VMs, and the leases that keep them while they are used. */
export class Staging {
  readonly #deps: StagingDeps;
  readonly #staged: Counter;

  constructor(deps: StagingDeps) {
    this.#deps = deps;
    this.#staged = deps.metrics.counter("unkey_assets_staged_total", "Files staged, by how they came to their place.");
  }

  /**
   * Stages assets for a VM, each followed by its parts; the lease answered keeps them from collection. Parts lie beside the
   * whole as `<file name>.1` and so on.
   */
  async prepare(
    request: PrepareAssets,
    signal: AbortSignal,
  ): Promise<{ readonly lease: Lease; readonly staged: readonly StagedAsset[] }> {
    const { leases, stored, stager, clock, log } = this.#deps;
    const { tenantId, leaseKey, placements, targetDir, leaseMs } = request;
    mustDiffer(placements);
    const nowMs = clock.nowMs();
    // Lease first: a crash before staging leaves a lease that expires, never a file that nobody counts.
    const { lease, contents } = await leases.acquire({
      tenantId,
      key: leaseKey,
      assetIds: placements.map(({ assetId }) => assetId),
      nowMs,
      expiresAtMs: nowMs + leaseMs,
    });
    try {
      const files = placements.flatMap(({ assetId, fileName }) => {
        const content = contents.get(assetId);
        if (content === undefined) throw new Error(`the lease does not hold ${assetId}`);
        const parts = content.parts.map((part, index) => ({
          assetId: part.id,
          fileName: `${fileName}.${index + 1}`,
          content: part,
        }));
        return [{ assetId, fileName, content }, ...parts];
      });
      mustDiffer(files);
      const wanted = await Promise.all(
        files.map(async ({ content, fileName }) => ({
          blobPath: await stored.verifiedPath(content, signal),
          fileName,
        })),
      );
      const methods = await stager.stage(targetDir, wanted, signal);
      const staged = files.map(({ assetId, fileName, content }, index) => ({
        assetId,
        path: join(targetDir, fileName),
        method: methods[index] ?? "copy",
        digest: content.digest,
      }));
      for (const { method } of staged) this.#staged.inc({ method });
      if (staged.some(({ method }) => method !== "hard_link")) {
        log.info("staged by other means than hard links", { leaseKey, staged });
      }
      return { lease, staged };
    } catch (error) {
      await leases
        .release(tenantId, lease.id)
        .catch((cause: unknown) => log.warn("lease left to expire", { leaseId: lease.id, error: cause }));
      throw error;
    }
  }

  async renewLease(tenantId: Owner, id: LeaseId, leaseMs: number): Promise<Lease> {
    const nowMs = this.#deps.clock.nowMs();
    const lease = await this.#deps.leases.renew(tenantId, id, nowMs, nowMs + leaseMs);
    if (lease === undefined) throw new ServiceError("LEASE_NOT_FOUND", `the lease ${id} has ended`);
    return lease;
  }

  releaseLease(tenantId: Owner, id: LeaseId): Promise<void> {
    return this.#deps.leases.release(tenantId, id);
  }

  listLeases(tenantId: Owner, assetId: AssetId | undefined): Promise<Lease[]> {
    return this.#deps.leases.list(tenantId, assetId, this.#deps.clock.nowMs());
  }
}

function mustDiffer(files: readonly { readonly fileName: string }[]): void {
  const names = new Set<string>();
  for (const { fileName } of files) {
    if (names.has(fileName)) {
      throw new ServiceError("INVALID_REQUEST", `placements: two files would have the same file name ${fileName}`);
    }
    names.add(fileName);
  }
}
