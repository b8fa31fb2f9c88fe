import { createHash } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { create } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import {
  AssetKind,
  AssetService,
  AssetState,
  type BeginUploadRequest,
  type UploadHeader,
  UploadHeaderSchema,
} from "@unkey/api/asset";
import { type AssetId, newId, ServiceError } from "@unkey/base";

export interface StoredAsset {
  readonly assetId: AssetId;
  readonly header: UploadHeader;
  readonly bytes: Buffer;
  readonly partIds: readonly string[];
}

interface Upload {
  readonly wish: BeginUploadRequest;
  bytes: Buffer;
}

/**
 * The part of assetmanagerd's contract that a builder uses, in memory, as of one on another host; it can be told to lose assets and
 * to fail.
 */
export class MemoryAssets {
  readonly stored: StoredAsset[] = [];
  /** Thrown by the next uploads, first one first. */
  readonly failures: Error[] = [];
  readonly #uploads = new Map<AssetId, Upload>();
  /** Awaited before the bytes of a root filesystem or of what describes one are read. */
  beforeUpload: () => Promise<void> = async () => {};

  /** Root filesystems among them: what describes one is an asset too. */
  get rootfs(): StoredAsset[] {
    return this.stored.filter(({ header }) => header.kind === AssetKind.ROOTFS);
  }

  readonly routes = (router: ConnectRouter): void => {
    const { stored } = this;
    const uploads = this.#uploads;
    const find = (assetId: string): Upload => {
      const upload = uploads.get(assetId as AssetId);
      if (upload === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no upload ${assetId}`);
      return upload;
    };
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
        const asset = { assetId: newId("asset"), header, bytes, partIds: [] };
        this.stored.push(asset);
        return this.#messageOf(asset);
      },
      beginUpload: (wish) => {
        const failure = this.failures.shift();
        if (failure !== undefined) throw failure;
        for (const partId of wish.partIds) {
          if (!stored.some(({ assetId }) => assetId === partId)) throw new ServiceError("ASSET_NOT_FOUND", partId);
        }
        const assetId = newId("asset");
        uploads.set(assetId, { wish, bytes: Buffer.alloc(0) });
        return { assetId, tenantId: wish.tenantId, state: AssetState.UPLOADING };
      },
      appendUpload: async (requests) => {
        let upload: Upload | undefined;
        for await (const { part } of requests) {
          if (part.case === "header") {
            if (part.value.sourcePath !== "") throw new ServiceError("ASSET_SOURCE_REFUSED", "another host");
            upload = find(part.value.assetId);
            if (upload.wish.kind === AssetKind.ROOTFS) await this.beforeUpload();
          } else if (part.case === "chunk" && upload !== undefined) {
            upload.bytes = Buffer.concat([upload.bytes, part.value]);
          }
        }
        return { state: AssetState.UPLOADING, receivedBytes: BigInt(upload?.bytes.length ?? 0) };
      },
      finishUpload: ({ assetId, sizeBytes }) => {
        const { wish, bytes } = find(assetId);
        if (BigInt(bytes.length) !== sizeBytes) throw new ServiceError("ASSET_SIZE_MISMATCH", "it has another length");
        uploads.delete(assetId as AssetId);
        const { tenantId, name, kind, labels, partIds } = wish;
        const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
        const equal = stored.find(
          ({ header, ...one }) =>
            one.partIds.every((partId) => stored.some(({ assetId: id }) => id === partId)) &&
            header.tenantId === tenantId &&
            header.kind === kind &&
            header.digest === digest &&
            isDeepStrictEqual(header.labels, labels),
        );
        const header = create(UploadHeaderSchema, { tenantId, name, kind, labels, digest, sizeBytes });
        const asset = equal ?? { assetId: assetId as AssetId, header, bytes, partIds };
        if (equal === undefined) stored.push(asset);
        return this.#messageOf(asset);
      },
      getAsset: ({ assetId, tenantId }) => {
        const asset = this.stored.find((one) => one.assetId === assetId && one.header.tenantId === tenantId);
        if (asset === undefined) throw new ServiceError("NOT_FOUND", `there is no asset ${assetId}`);
        return this.#messageOf(asset);
      },
      downloadAsset: async function* (this: void, { assetId, tenantId }) {
        const asset = stored.find((one) => one.assetId === assetId && one.header.tenantId === tenantId);
        if (asset === undefined) throw new ServiceError("ASSET_NOT_FOUND", `there is no asset ${assetId}`);
        yield { chunk: asset.bytes };
      },
      listAssets: ({ tenantId, kind, labels, attachedTo, digest }) => ({
        assets: this.stored
          .filter(({ header }) => header.tenantId === tenantId && header.kind === kind)
          .filter(({ header }) => digest === "" || header.digest === digest)
          .filter(({ header }) => attachedTo === "" || header.attachedTo === attachedTo)
          .filter(({ header }) => Object.entries(labels).every(([name, value]) => header.labels[name] === value))
          .map((asset) => this.#messageOf(asset)),
      }),
    });
  };

  #messageOf({ assetId, header, partIds }: StoredAsset) {
    const { tenantId, name, kind, digest, sizeBytes, labels, attachedTo } = header;
    const parts = partIds.map((partId) => {
      const part = this.stored.find((one) => one.assetId === partId);
      const state = part === undefined ? AssetState.ERROR : AssetState.AVAILABLE;
      return { assetId: partId, digest: part?.header.digest ?? "", state };
    });
    const state = AssetState.AVAILABLE;
    return { assetId, tenantId, name, kind, digest, sizeBytes, labels, attachedTo, state, parts };
  }
}
