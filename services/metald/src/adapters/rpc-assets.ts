import { basename } from "node:path";
import type { Client } from "@connectrpc/connect";
import type { AssetService, StagedAsset } from "@unkey/api/asset";
import { ServiceError, type TenantId } from "@unkey/base";
import type { StagedRootfs } from "../domain/vm.ts";
import type { Assets, StageRequest } from "../ports.ts";

/** Kernel and initial ramdisk for VMs that name none. */
export interface BootAssetIds {
  readonly kernelAssetId: string;
  readonly initrdAssetId: string;
}

const rootfsName = "rootfs";

export const leaseMs = 10 * 60_000;

/** assetmanagerd on this host. */
export class RpcAssets implements Assets {
  readonly #client: Client<typeof AssetService>;
  readonly #bootAssets: () => Promise<BootAssetIds>;

  constructor(client: Client<typeof AssetService>, bootAssets: () => Promise<BootAssetIds>) {
    this.#client = client;
    this.#bootAssets = bootAssets;
  }

  async stage(
    request: StageRequest,
    signal: AbortSignal,
  ): Promise<{ readonly leaseId: string; readonly rootfs: StagedRootfs }> {
    const { tenantId, vmId, dir, kernelAssetId, initrdAssetId, rootfsAssetId } = request;
    const own = kernelAssetId && initrdAssetId ? undefined : await this.#bootAssets();
    const { lease, staged } = await this.#client.prepareAssets(
      {
        tenantId,
        leaseKey: vmId,
        placements: [
          { assetId: kernelAssetId || (own?.kernelAssetId ?? ""), fileName: "kernel" },
          { assetId: initrdAssetId || (own?.initrdAssetId ?? ""), fileName: "initrd" },
          { assetId: rootfsAssetId, fileName: rootfsName },
        ].filter(({ assetId }) => assetId !== ""), // a host that runs no guest has no default kernel
        targetDir: dir,
        leaseMs: BigInt(leaseMs),
      },
      { signal },
    );
    return { leaseId: lease?.leaseId ?? "", rootfs: rootfsOf(staged) };
  }

  async renew(tenantId: TenantId, leaseId: string, signal: AbortSignal): Promise<void> {
    await this.#client.renewLease({ tenantId, leaseId, leaseMs: BigInt(leaseMs) }, { signal });
  }

  async release(tenantId: TenantId, leaseId: string, signal: AbortSignal): Promise<void> {
    await this.#client.releaseLease({ tenantId, leaseId }, { signal });
  }
}

/** The root filesystem among what was staged: it comes last, with its parts behind it. */
function rootfsOf(staged: readonly StagedAsset[]): StagedRootfs {
  const names = staged.map(({ path }) => basename(path));
  const at = names.indexOf(rootfsName);
  const [image, ...parts] = at === -1 ? [] : staged.slice(at);
  const isInOrder = names.slice(at + 1).every((name, index) => name === `${rootfsName}.${index + 1}`);
  if (image === undefined || !isInOrder) {
    throw new ServiceError("INTERNAL", "assetmanagerd staged other files than it was asked for", {
      metadata: { staged: names.join(" ") },
    });
  }
  return { digest: image.digest, partDigests: parts.map(({ digest }) => digest) };
}
