import type { Client } from "@connectrpc/connect";
import type { AssetService } from "@unkey/api/asset";
import type { TenantId } from "@unkey/base";
import type { Assets, StageRequest } from "../ports.ts";

/** Kernel and initial ramdisk for VMs that name none. */
export interface BootAssetIds {
  readonly kernelAssetId: string;
  readonly initrdAssetId: string;
}

export const leaseMs = 10 * 60_000;

/** assetmanagerd on this host. */
export class RpcAssets implements Assets {
  readonly #client: Client<typeof AssetService>;
  readonly #bootAssets: () => Promise<BootAssetIds>;

  constructor(client: Client<typeof AssetService>, bootAssets: () => Promise<BootAssetIds>) {
    this.#client = client;
    this.#bootAssets = bootAssets;
  }

  async stage(request: StageRequest, signal: AbortSignal): Promise<{ readonly leaseId: string }> {
    const { tenantId, vmId, dir, kernelAssetId, initrdAssetId, rootfsAssetId } = request;
    const own = kernelAssetId && initrdAssetId ? undefined : await this.#bootAssets();
    const { lease } = await this.#client.prepareAssets(
      {
        tenantId,
        leaseKey: vmId,
        placements: [
          { assetId: kernelAssetId || (own?.kernelAssetId ?? ""), fileName: "kernel" },
          { assetId: initrdAssetId || (own?.initrdAssetId ?? ""), fileName: "initrd" },
          { assetId: rootfsAssetId, fileName: "rootfs" },
        ].filter(({ assetId }) => assetId !== ""), // a host that runs no guest has no default kernel
        targetDir: dir,
        leaseMs: BigInt(leaseMs),
      },
      { signal },
    );
    return { leaseId: lease?.leaseId ?? "" };
  }

  async renew(tenantId: TenantId, leaseId: string, signal: AbortSignal): Promise<void> {
    await this.#client.renewLease({ tenantId, leaseId, leaseMs: BigInt(leaseMs) }, { signal });
  }

  async release(tenantId: TenantId, leaseId: string, signal: AbortSignal): Promise<void> {
    await this.#client.releaseLease({ tenantId, leaseId }, { signal });
  }
}
