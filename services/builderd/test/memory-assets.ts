import { createHash } from "node:crypto";
import type { ConnectRouter } from "@connectrpc/connect";
import { AssetKind, AssetService, AssetState, type UploadHeader } from "@unkey/api/asset";
import { type AssetId, newId, ServiceError } from "@unkey/base";

export interface StoredAsset {
  readonly assetId: AssetId;
  readonly header: UploadHeader;
  readonly bytes: Buffer;
}

/** The part of assetmanagerd's contract that a builder uses, in memory; it can be told to lose assets and to fail. */
export class MemoryAssets {
  readonly stored: StoredAsset[] = [];
  /** Thrown by the next uploads, first one first. */
  readonly failures: Error[] = [];
  /** Awaited before an upload's bytes are read. */
  beforeUpload: () => Promise<void> = async () => {};

  /** Root filesystems among them: what describes one is an asset too. */
  get rootfs(): StoredAsset[] {
    return this.stored.filter(({ header }) => header.kind === AssetKind.ROOTFS);
  }

  readonly routes = (router: ConnectRouter): void => {
    const { stored } = this;
    router.service(AssetService, {
      uploadAsset: async (requests) => {
        const failure = this.failures.shift();
        if (failure !== undefined) throw failure;
        await this.beforeUpload();
        let header: UploadHeader | undefined;
        const parts: Uint8Array[] = [];
        for await (const { part } of requests) {
          if (part.case === "header") header = part.value;
          else if (part.case === "chunk") parts.push(part.value);
        }
        const bytes = Buffer.concat(parts);
        const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
        if (header === undefined || digest !== header.digest || BigInt(bytes.length) !== header.sizeBytes) {
          throw new ServiceError("INVALID_REQUEST", "the bytes are not those announced");
        }
        const asset = { assetId: newId("asset"), header, bytes };
        this.stored.push(asset);
        return messageOf(asset);
      },
      getAsset: ({ assetId, tenantId }) => {
        const asset = this.stored.find((one) => one.assetId === assetId && one.header.tenantId === tenantId);
        if (asset === undefined) throw new ServiceError("NOT_FOUND", `there is no asset ${assetId}`);
        return messageOf(asset);
      },
      downloadAsset: async function* (this: void, { assetId, tenantId }) {
        const asset = stored.find((one) => one.assetId === assetId && one.header.tenantId === tenantId);
        if (asset === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${assetId}`);
        yield { chunk: asset.bytes };
      },
      listAssets: ({ tenantId, kind, labels, attachedTo }) => ({
        assets: this.stored
          .filter(({ header }) => header.tenantId === tenantId && header.kind === kind)
          .filter(({ header }) => attachedTo === "" || header.attachedTo === attachedTo)
          .filter(({ header }) => Object.entries(labels).every(([name, value]) => header.labels[name] === value))
          .map(messageOf),
      }),
    });
  };
}

function messageOf({ assetId, header }: StoredAsset) {
  const { tenantId, name, kind, digest, sizeBytes, labels, attachedTo } = header;
  return { assetId, tenantId, name, kind, digest, sizeBytes, labels, attachedTo, state: AssetState.AVAILABLE };
}
